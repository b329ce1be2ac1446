/* options.h - a program's options in one table, which also produces its --help
 *
 *     static struct { const char *listen; double loops; bool quiet; } options = {"127.0.0.1:8080"};
 *     static const options_field fields[] = {
 *         OPTIONS_TEXT("listen", "ADDRESS", &options.listen, "default: 127.0.0.1:8080"),
 *         OPTIONS_NUMBER("loops", "N", &options.loops, 1, 64, "default: one per processor"),
 *         OPTIONS_FLAG("quiet", &options.quiet, "no log"),
 *     };
 *     int main(int argc, char **argv)
 *     {
 *         int status = options_read(fields, 3, argc, argv, "web [options]", "Serves a site.");
 *         if (status >= 0)
 *             return status;
 *
 * --listen X and --listen=X mean the same. Options not in the table are errors. So are other words,
 * unless there is an OPTIONS_WORDS, which gets them as a NULL-terminated list. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct options_field {
    const char *name, *value; /* "listen", "ADDRESS"; value NULL: takes none */
    const char *help;
    const char **text; /* where to store it: one of these four */
    double *number;
    bool *flag;
    char ***words;
    double min, max; /* of the number */
} options_field;

/* clang-format off */
#define OPTIONS_TEXT(name_, value_, to, help_) \
    {.name = name_, .value = value_, .text = to, .help = help_}
#define OPTIONS_NUMBER(name_, value_, to, min_, max_, help_) \
    {.name = name_, .value = value_, .number = to, .min = min_, .max = max_, .help = help_}
#define OPTIONS_FLAG(name_, to, help_) {.name = name_, .flag = to, .help = help_}
#define OPTIONS_WORDS(value_, to, help_) \
    {.name = "", .value = value_, .words = to, .help = help_}
/* clang-format on */

/* Reads the arguments. Returns -1 to continue, or else an exit status: 0 if --help was printed to
 * stdout, 1 if that failed, 2 if the arguments are invalid, which was reported on stderr. */
static inline int options_read(const options_field *fields, size_t count, int argc, char **argv,
                               const char *usage, const char *about)
    __attribute__((__warn_unused_result__));

/* ---- implementation ------------------------------------------------------------------------- */

static inline int options__help(const options_field *fields, size_t count, const char *usage,
                                const char *about)
{
    printf("usage: %s\n%s\n\n", usage, about);
    for (size_t i = 0; i < count; i++) {
        char label[40];
        const options_field *f = &fields[i];
        if (f->words)
            snprintf(label, sizeof label, "%s", f->value);
        else
            snprintf(label, sizeof label, "--%s %s", f->name, f->value ? f->value : "");
        printf("  %-22s %s\n", label, f->help);
    }
    printf("  %-22s this page\n", "--help");
    return fflush(stdout) ? 1 : 0;
}

/* Stores an option's value. Returns NULL, or the reason to refuse it. */
static inline const char *options__set(const options_field *f, const char *value)
{
    char *end;
    if (f->flag && value)
        return "takes no value";
    if (f->flag)
        *f->flag = true;
    else if (!value)
        return "needs a value";
    else if (f->text)
        *f->text = value;
    if (!f->number)
        return NULL;
    double n = strtod(value, &end);
    bool is_number = *value && *end == 0 && isfinite(n);
    if (!is_number)
        return "needs a number";
    if (n < f->min || n > f->max)
        return "is out of range";
    *f->number = n;
    return NULL;
}

/* Reads argv[*i], and its value if that is separate. Returns NULL, or what is wrong. */
static inline const char *options__read_one(const options_field *fields, size_t count, char **argv,
                                            int *i)
{
    const char *word = argv[*i] + 2, *equals = strchr(word, '=');
    size_t n = strcspn(word, "=");
    if (strncmp(argv[*i], "--", 2) != 0)
        return "is not an option";
    for (size_t j = 0; j < count; j++) {
        const options_field *f = &fields[j];
        if (f->words || strncmp(f->name, word, n) != 0 || f->name[n])
            continue;
        if (equals)
            return options__set(f, equals + 1);
        return options__set(f, f->flag ? NULL : argv[++*i]);
    }
    return "is not an option";
}

static inline int options_read(const options_field *fields, size_t count, int argc, char **argv,
                               const char *usage, const char *about)
{
    int word_count = 0;
    const options_field *words = fields;
    while (words < fields + count && !words->words)
        words++;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (*word != '-' && words < fields + count) {
            argv[++word_count] = argv[i]; /* overwrites a word that was read already */
            continue;
        }
        if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
            return options__help(fields, count, usage, about);
        const char *fault = options__read_one(fields, count, argv, &i);
        if (fault) {
            fprintf(stderr, "%s: %s %s; --help lists the options\n", argv[0], word, fault);
            return 2;
        }
    }
    argv[word_count + 1] = NULL;
    if (words < fields + count)
        *words->words = argv + 1;
    return -1;
}

#endif
