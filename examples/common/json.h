/* json.h - adds many numbers to a cJSON object
 *
 *     cJSON *json = cJSON_CreateObject();
 *     JSON_ADD(json, {"events", 12}, {"rate", 0.5});
 *
 * Compile with -lcjson. */
#ifndef JSON_H
#define JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>

typedef struct json_number {
    const char *name;
    double value;
} json_number;

#define JSON_ADD(object, ...)                            \
    json_add(object, (const json_number[]){__VA_ARGS__}, \
             sizeof((const json_number[]){__VA_ARGS__}) / sizeof(json_number))

static inline void json_add(cJSON *object, const json_number *numbers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        cJSON_AddNumberToObject(object, numbers[i].name, numbers[i].value);
}

#endif
