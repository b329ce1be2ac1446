/* payment.h - payment records: read from CSV or JSON, checked, converted to euros
 *
 *     payment p;
 *     const char *fault = payment_read_csv("7,\"Ng, Bo\",12.34,USD,2024-02-29T13:14:15Z", &p);
 *     if (!fault)
 *         payment_print(&p, "shop.csv", stdout);
 *
 * prints {"source":"shop.csv","position":0,"id":7,"customer":"Ng, Bo","cents":1135,...}. A JSON
 * line is an object with the same names: id, customer, amount, currency, time.
 *
 * The id is a whole number, from 1; the amount is greater than 0, in EUR, USD, GBP or CHF; the time
 * is in UTC; the customer is UTF-8, at most 63 bytes without surrounding spaces. No call waits; all
 * may be called anywhere. Compile with -lcjson (Debian: libcjson-dev). Include conc.h before.
 */
#ifndef PAYMENT_H
#define PAYMENT_H

#include "csv.h"
#include "utf8.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { PAYMENT_LINE = 4096 }; /* maximum size of a line */

typedef struct payment {
    int64_t position;        /* in its source; set by the caller */
    int64_t id, cents, time; /* cents of a euro; seconds since 1970 */
    char customer[64], currency[4];
} payment;

/* Reads a line without its end. Returns NULL, or why it is refused. */
typedef const char *payment_reader(const char *line, payment *p);
static inline const char *payment_read_csv(const char *line, payment *p);
static inline const char *payment_read_json(const char *line, payment *p);

/* Prints it as a line of JSON. Returns 0, or -1 if out of memory or the write failed. */
static inline int payment_print(const payment *p, const char *source, FILE *to);

/* Prints a refused line, or its beginning, with the reason: {"source":...,"position":...,"reason":
 * ...,"text":...}. Bytes that JSON cannot hold become question marks. */
enum { PAYMENT_EXCERPT = 200 }; /* maximum size of the line's excerpt */
static inline int payment_print_reject(const char *source, int64_t position, const char *line,
                                       size_t size, const char *reason, FILE *to);

/* ---- implementation ------------------------------------------------------------------------- */

/* The fields of a record before they are checked. */
typedef struct payment__draft {
    double id, amount;                      /* NAN: missing */
    const char *customer, *currency, *time; /* NULL: missing */
} payment__draft;

/* Reads "2024-02-29T13:14:15Z". timegm turns February 30 into March 1, so compare the texts. */
static inline bool payment__read_time(const char *text, int64_t *time)
{
    struct tm t = {0};
    char same[32];
    if (sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2dZ", &t.tm_year, &t.tm_mon, &t.tm_mday, &t.tm_hour,
               &t.tm_min, &t.tm_sec) != 6)
        return false;
    t.tm_year -= 1900;
    t.tm_mon--;
    *time = timegm(&t);
    strftime(same, sizeof same, "%Y-%m-%dT%H:%M:%SZ", &t);
    return strcmp(same, text) == 0;
}

/* Returns the currency's rate in euros; 0: unknown. */
static inline double payment__find_rate(const char *currency)
{
    static const struct {
        char name[4];
        double rate;
    } known[] = {{"EUR", 1}, {"USD", 0.92}, {"GBP", 1.17}, {"CHF", 1.04}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, currency) == 0)
            return known[i].rate;
    return 0;
}

static inline const char *payment__set_customer(const char *text, payment *p)
{
    size_t start = strspn(text, " "), end = strlen(text);
    while (end > start && text[end - 1] == ' ')
        end--;
    if (end == start)
        return "the customer has no name";
    if (end - start >= sizeof p->customer)
        return "the customer's name is too long";
    snprintf(p->customer, sizeof p->customer, "%.*s", (int)(end - start), text + start);
    return utf8_is_valid(p->customer) ? NULL : "the customer's name is not UTF-8";
}

static inline const char *payment__convert(const payment__draft *d, payment *p)
{
    bool is_id = d->id >= 1 && d->id <= 1e15;
    if (!is_id || d->id != (double)(int64_t)d->id)
        return "the id is not a whole number";
    if (!d->customer || !d->currency || !d->time)
        return "a field is missing, or is not text";
    if (!(d->amount > 0 && d->amount <= 1e9))
        return "the amount is not a number, or out of range";
    double rate = payment__find_rate(d->currency);
    if (rate == 0)
        return "the currency is unknown";
    if (!payment__read_time(d->time, &p->time))
        return "the time is not valid";
    p->position = 0;
    p->id = (int64_t)d->id;
    p->cents = (int64_t)(d->amount * rate * 100 + 0.5);
    snprintf(p->currency, sizeof p->currency, "%s", d->currency);
    return payment__set_customer(d->customer, p);
}

static inline double payment__read_number(const char *text)
{
    char *end;
    double number = strtod(text, &end); /* also accepts hexadecimal, hence strspn */
    bool is_number = *text && !*end && strspn(text, "0123456789.+-eE") == strlen(text);
    return is_number ? number : NAN;
}

static inline const char *payment_read_csv(const char *line, payment *p)
{
    char *fields[5], copy[PAYMENT_LINE + 1];
    if (snprintf(copy, sizeof copy, "%s", line) >= (int)sizeof copy)
        return "the line is too long";
    const char *fault = csv_split(copy, fields, 5);
    if (fault)
        return fault;
    payment__draft d = {payment__read_number(fields[0]), payment__read_number(fields[2]), fields[1],
                        fields[3], fields[4]};
    return payment__convert(&d, p);
}

static inline const char *payment_read_json(const char *line, payment *p)
{
    cJSON *json = cJSON_ParseWithOpts(line, NULL, true);
    const char *fault = NULL;
    payment__draft d = {
        cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(json, "id")),
        cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(json, "amount")),
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "customer")),
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "currency")),
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "time")),
    };
    if (!json)
        fault = "this is not JSON";
    else if (!cJSON_IsObject(json))
        fault = "this is not a JSON object";
    else if (strstr(line, "\\u0000")) /* a C string would end there */
        fault = "the line contains a NUL";
    else
        fault = payment__convert(&d, p);
    cJSON_Delete(json);
    return fault;
}

static inline int payment__print_json(cJSON *json, FILE *to)
{
    char *text = cJSON_PrintUnformatted(json);
    int rc = text && fprintf(to, "%s\n", text) > 0 ? 0 : -1;
    cJSON_free(text);
    cJSON_Delete(json);
    return rc;
}

static inline int payment_print(const payment *p, const char *source, FILE *to)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "source", source);
    cJSON_AddNumberToObject(json, "position", (double)p->position);
    cJSON_AddNumberToObject(json, "id", (double)p->id);
    cJSON_AddStringToObject(json, "customer", p->customer);
    cJSON_AddNumberToObject(json, "cents", (double)p->cents);
    cJSON_AddStringToObject(json, "currency", p->currency);
    cJSON_AddNumberToObject(json, "time", (double)p->time);
    return payment__print_json(json, to);
}

static inline int payment_print_reject(const char *source, int64_t position, const char *line,
                                       size_t size, const char *reason, FILE *to)
{
    char text[PAYMENT_EXCERPT + 1] = "";
    size_t kept = size < PAYMENT_EXCERPT ? size : PAYMENT_EXCERPT;
    memcpy(text, line, kept);
    for (size_t i = 0; i < kept;) {
        size_t n = text[i] ? utf8_length(text + i) : 0; /* the cut may have split a character */
        if (n == 0)
            text[i] = '?';
        i += n > 0 ? n : 1;
    }
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "source", source);
    cJSON_AddNumberToObject(json, "position", (double)position);
    cJSON_AddStringToObject(json, "reason", reason);
    cJSON_AddStringToObject(json, "text", text);
    return payment__print_json(json, to);
}

#endif
