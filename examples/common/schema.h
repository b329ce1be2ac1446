/* schema.h - checks JSON and queries against a table of fields and fills a struct, with cJSON
 *
 *     typedef struct { char name[41]; int64_t age; bool admin; } user;
 *     static const schema_field user_fields[] = {
 *         SCHEMA_TEXT(user, name, .min = 1),
 *         SCHEMA_INTEGER(user, age, .min = 0, .max = 150),
 *         SCHEMA_BOOLEAN(user, admin, .optional = true),
 *     };
 *     static int add_user(http_connection *http, void *arg)
 *     {
 *         user u = {0};
 *         int rc = schema_read_body(http, user_fields, CONC_LEN(user_fields), &u);
 *         return rc <= 0 ? rc : http_printf(http, 201, "%s\n", u.name);
 *     }
 *
 * Invalid input is answered with 422, naming every field and reason:
 *
 *     {"errors": [{"field": "name", "reason": "is missing"},
 *                 {"field": "age", "reason": "must be at most 150"}]}
 *
 * Also refused: an unknown or duplicate name; text that is not UTF-8, or contains a NUL; JSON
 * followed by anything; and with 415 a body whose Content-Type is not application/json. Compile
 * with -lcjson (Debian: libcjson-dev). */
#ifndef SCHEMA_H
#define SCHEMA_H

#ifndef HTTP_H
#error "schema.h: include conc.h and http.h first"
#endif

#include "utf8.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>

/* ---- what you call -------------------------------------------------------------------------- */

typedef enum schema_type {
    SCHEMA_IS_TEXT,    /* char[]: must fit with its NUL */
    SCHEMA_IS_INTEGER, /* int64_t; up to 2^53, because cJSON's numbers are doubles */
    SCHEMA_IS_NUMBER,  /* double */
    SCHEMA_IS_BOOLEAN  /* bool */
} schema_type;

typedef struct schema_field {
    const char *name;
    schema_type type;
    size_t offset, size;
    /* Options */
    bool optional;   /* may be missing or null, which leaves the struct's member unchanged */
    double min, max; /* limits of a number, or of a text's bytes; both 0: none */
    const char *(*check)(const void *value); /* further rules: returns NULL, or the reason to refuse
                                                it */
} schema_field;

/* A field with the name of the struct's member. */
#define SCHEMA_TEXT(of, member, ...) SCHEMA__FIELD(SCHEMA_IS_TEXT, of, member, __VA_ARGS__)
#define SCHEMA_INTEGER(of, member, ...) SCHEMA__FIELD(SCHEMA_IS_INTEGER, of, member, __VA_ARGS__)
#define SCHEMA_NUMBER(of, member, ...) SCHEMA__FIELD(SCHEMA_IS_NUMBER, of, member, __VA_ARGS__)
#define SCHEMA_BOOLEAN(of, member, ...) SCHEMA__FIELD(SCHEMA_IS_BOOLEAN, of, member, __VA_ARGS__)

/* Reads the request's body into *out. Returns 1; or 0 if it is invalid, and the client got 415 or
 * 422; some members of *out may then be set. Negative: an error of http_body, or -ENOMEM. Waits. */
static inline int schema_read_body(http_connection *http, const schema_field *fields, size_t count,
                                   void *out);

/* Reads the query of the request's target in the same way. Ignores other names; a boolean is "true"
 * or "false". */
static inline int schema_read_query(http_connection *http, const schema_field *fields, size_t count,
                                    void *out);

/* Reads size bytes of JSON into *out. Returns NULL, or a list of errors to free with cJSON_Delete.
 * Not a checkpoint. May be called anywhere. */
static inline cJSON *schema_read(const char *json, size_t size, const schema_field *fields,
                                 size_t count, void *out);

/* Converts JSON to text, which the caller frees, and deletes the JSON. NULL: out of memory. */
static inline char *schema_text(cJSON *json);

/* Responds with a status and JSON, and deletes the JSON; JSON of NULL means out of memory.
 * Waits. */
static inline int schema_answer(http_connection *http, int status, cJSON *json);

/* ---- implementation ------------------------------------------------------------------------- */

/* clang-format off */
#define SCHEMA__FIELD(kind, of, member, ...) \
    {.name = #member, .type = kind, .offset = offsetof(of, member), \
     .size = sizeof(((of *)0)->member), __VA_ARGS__}
/* clang-format on */

__attribute__((__format__(__printf__, 3, 4))) static inline void
schema__complain(cJSON *errors, const char *field, const char *fmt, ...)
{
    char reason[160];
    va_list args;
    cJSON *error = cJSON_CreateObject();
    va_start(args, fmt);
    vsnprintf(reason, sizeof reason, fmt, args);
    va_end(args);
    cJSON_AddStringToObject(error, "field", field);
    cJSON_AddStringToObject(error, "reason", reason);
    cJSON_AddItemToArray(errors, error);
}

/* Does the JSON contain a NUL, plain or escaped? It would cut cJSON's strings short. */
static inline bool schema__has_nul(const char *json, size_t size)
{
    if (memchr(json, 0, size))
        return true;
    for (size_t i = 0; i + 1 < size; i++) {
        if (json[i] != '\\')
            continue;
        if (size - i >= 6 && memcmp(json + i, "\\u0000", 6) == 0)
            return true;
        i++; /* the escaped character may be a backslash */
    }
    return false;
}

static inline void schema__read_text(cJSON *errors, const schema_field *f, const char *text,
                                     void *member)
{
    size_t n = strlen(text), max = f->size - 1;
    if (f->max > 0 && f->max < (double)max)
        max = (size_t)f->max;
    if (!utf8_is_valid(text))
        schema__complain(errors, f->name, "is not UTF-8");
    else if ((double)n < f->min)
        schema__complain(errors, f->name, "must have at least %g bytes", f->min);
    else if (n > max)
        schema__complain(errors, f->name, "must have at most %zu bytes", max);
    else
        memcpy(member, text, n + 1);
}

static inline void schema__read_number(cJSON *errors, const schema_field *f, double value,
                                       void *member)
{
    bool is_limited = f->min != 0 || f->max != 0;
    bool is_integer = fabs(value) <= 9007199254740992 && (double)(int64_t)value == value;
    if (f->type == SCHEMA_IS_INTEGER && !is_integer)
        schema__complain(errors, f->name, "must be a whole number");
    else if (!isfinite(value))
        schema__complain(errors, f->name, "is too large");
    else if (is_limited && value < f->min)
        schema__complain(errors, f->name, "must be at least %.15g", f->min);
    else if (is_limited && value > f->max)
        schema__complain(errors, f->name, "must be at most %.15g", f->max);
    else if (f->type == SCHEMA_IS_INTEGER)
        *(int64_t *)member = (int64_t)value;
    else
        *(double *)member = value;
}

static inline void schema__read_value(cJSON *errors, const schema_field *f, const cJSON *value,
                                      void *member)
{
    static const char *const names[] = {"text", "a number", "a number", "true or false"};
    int before = cJSON_GetArraySize(errors);
    bool is_number = f->type == SCHEMA_IS_INTEGER || f->type == SCHEMA_IS_NUMBER;
    if (f->type == SCHEMA_IS_TEXT && cJSON_IsString(value))
        schema__read_text(errors, f, value->valuestring, member);
    else if (is_number && cJSON_IsNumber(value))
        schema__read_number(errors, f, value->valuedouble, member);
    else if (f->type == SCHEMA_IS_BOOLEAN && cJSON_IsBool(value))
        *(bool *)member = cJSON_IsTrue(value);
    else
        schema__complain(errors, f->name, "must be %s", names[f->type]);
    bool may_check = f->check && cJSON_GetArraySize(errors) == before;
    const char *reason = may_check ? f->check(member) : NULL;
    if (reason)
        schema__complain(errors, f->name, "%s", reason);
}

static inline const schema_field *schema__field(const schema_field *fields, size_t count,
                                                const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(fields[i].name, name) == 0)
            return &fields[i];
    return NULL;
}

static inline void schema__read_object(cJSON *errors, const cJSON *object,
                                       const schema_field *fields, size_t count, void *out)
{
    const cJSON *item;
    for (size_t i = 0; i < count; i++) {
        const schema_field *f = &fields[i];
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, f->name);
        bool is_missing = !value || (f->optional && cJSON_IsNull(value));
        if (!is_missing)
            schema__read_value(errors, f, value, (char *)out + f->offset);
        else if (!f->optional)
            schema__complain(errors, f->name, "is missing");
    }
    cJSON_ArrayForEach(item, object)
    {
        const char *name = utf8_is_valid(item->string) ? item->string : "?";
        if (!schema__field(fields, count, name))
            schema__complain(errors, name, "is unknown");
        else if (cJSON_GetObjectItemCaseSensitive(object, name) != item)
            schema__complain(errors, name, "occurs twice");
    }
}

/* Returns the list, or NULL if it is empty. */
static inline cJSON *schema__result(cJSON *errors)
{
    if (cJSON_GetArraySize(errors))
        return errors;
    cJSON_Delete(errors);
    return NULL;
}

static inline cJSON *schema_read(const char *json, size_t size, const schema_field *fields,
                                 size_t count, void *out)
{
    const char *end = json;
    cJSON *errors = cJSON_CreateArray();
    cJSON *object = cJSON_ParseWithLengthOpts(json, size, &end, false);
    while (object && end < json + size && strchr(" \t\r\n", *end) && *end)
        end++;
    if (!object || end != json + size)
        schema__complain(errors, "body", "is not JSON, from byte %zu on", (size_t)(end - json) + 1);
    else if (!cJSON_IsObject(object))
        schema__complain(errors, "body", "must be a JSON object");
    else if (schema__has_nul(json, size))
        schema__complain(errors, "body", "must have no NUL in its text");
    else
        schema__read_object(errors, object, fields, count, out);
    cJSON_Delete(object);
    return schema__result(errors);
}

static inline char *schema_text(cJSON *json)
{
    char *text = json ? cJSON_PrintUnformatted(json) : NULL;
    cJSON_Delete(json);
    return text;
}

static inline int schema_answer(http_connection *http, int status, cJSON *json)
{
    char *text = schema_text(json);
    if (!text)
        return conc_fail(-ENOMEM, "out of memory");
    int rc = http_set_header(http, "Content-Type", "application/json");
    if (rc >= 0)
        rc = http_respond(http, status, text, strlen(text));
    free(text);
    return rc;
}

/* Returns 1 if there are no errors; else responds with them and returns 0. */
static inline int schema__judge(http_connection *http, cJSON *errors)
{
    if (!errors)
        return 1;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "errors", errors);
    CONC_TRY(schema_answer(http, 422, json));
    return 0;
}

static inline int schema_read_body(http_connection *http, const schema_field *fields, size_t count,
                                   void *out)
{
    static const char json[] = "application/json";
    const char *type = http_header(http, "Content-Type");
    char *body;
    size_t n = type ? strcspn(type, "; \t") : 0;
    if (n != sizeof json - 1 || strncasecmp(type, json, n) != 0) {
        CONC_TRY(http_printf(http, 415, "the body has to be %s\n", json));
        return 0;
    }
    ssize_t size = CONC_TRY(http_body(http, &body));
    return schema__judge(http, schema_read(body, (size_t)size, fields, count, out));
}

/* Converts a query's text to the JSON value that it stands for. */
static inline cJSON *schema__of_text(const schema_field *f, const char *text)
{
    char *end;
    double number = strtod(text, &end);
    bool is_word = f->type == SCHEMA_IS_BOOLEAN;
    if (is_word && strcmp(text, "true") == 0)
        return cJSON_CreateTrue();
    if (is_word && strcmp(text, "false") == 0)
        return cJSON_CreateFalse();
    bool is_number = f->type != SCHEMA_IS_TEXT && !is_word && *text && *end == 0;
    if (is_number && !isspace((unsigned char)*text) && isfinite(number))
        return cJSON_CreateNumber(number);
    return cJSON_CreateString(text);
}

static inline int schema_read_query(http_connection *http, const schema_field *fields, size_t count,
                                    void *out)
{
    char text[1024];
    cJSON *errors = cJSON_CreateArray(), *object = cJSON_CreateObject();
    for (size_t i = 0; i < count; i++) {
        ssize_t n = http_value(http->query, fields[i].name, text, sizeof text);
        if (n >= 0)
            cJSON_AddItemToObject(object, fields[i].name, schema__of_text(&fields[i], text));
        else if (n != -ENOENT)
            schema__complain(errors, fields[i].name, "%s", conc_last_error());
    }
    if (cJSON_GetArraySize(errors) == 0)
        schema__read_object(errors, object, fields, count, out);
    cJSON_Delete(object);
    return schema__judge(http, schema__result(errors));
}

#endif
