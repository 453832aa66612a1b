#include "script.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

unit_t units[64];
int n_units;
volatile control_t *control;

static unit_t host;
static fault_t faults[64];
static int n_faults;
static control_t nobody;

static unit_t *unit_named(const char *name) {
    for (int i = 0; i < n_units; i++)
        if (!strcmp(units[i].name, name)) return &units[i];
    unit_t *unit = &units[n_units++];
    memset(unit, 0, sizeof *unit);
    snprintf(unit->name, sizeof unit->name, "%s", name);
    return unit;
}

static void set(unit_t *unit, const char *key, const char *value) {
    property_t *p = &unit->properties[unit->n_properties++];
    snprintf(p->key, sizeof p->key, "%s", key);
    snprintf(p->value, sizeof p->value, "%s", value);
}

static point_t *add_point(unit_t *unit, const char *name, const char *text) {
    unit->points = realloc(unit->points, (unit->n_points + 1) * sizeof *unit->points);
    point_t *p = &unit->points[unit->n_points++];
    *p = (point_t){.value = strtod(text, NULL)};
    snprintf(p->name, sizeof p->name, "%s", name);
    snprintf(p->text, sizeof p->text, "%s", text);
    return p;
}

static void read_line(char *line) {
    char a[64], b[64], c[128], text[32];
    unsigned long long from, to, after;
    int code;
    line[strcspn(line, "\n")] = 0;
    if (sscanf(line, "host %63s %127[^\n]", a, c) == 2) {
        set(&host, a, c);
    } else if (sscanf(line, "unit %63s %63s %127[^\n]", a, b, c) == 3) {
        set(unit_named(a), b, c);
    } else if (sscanf(line, "at %llu %63s %63s %31s", &from, a, b, text) == 4) {
        add_point(unit_named(a), b, text)->t_us = from;
    } else if (sscanf(line, "grow %63s %63s %31s %llu", a, b, text, &to) == 4) {
        add_point(unit_named(a), b, text)->a_second = (double)to;
    } else if (sscanf(line, "process %63s %llu %63s %31s", a, &from, b, text) == 4) {
        unit_t *unit = unit_named(a);
        process_t *p = &unit->processes[unit->n_processes++];
        p->pid = (unsigned)from;
        p->mib = !strcmp(b, "ended") ? -2 : *b == '-' ? -1 : atoll(b);
        p->sm = *text == '-' ? -1 : atoll(text);
    } else if (sscanf(line, "account %63s %llu %llu %llu %d", a, &after, &from, &to, &code) == 5) {
        unit_t *unit = unit_named(a);
        unit->accounts[unit->n_accounts++] = (account_t){(unsigned)after, (unsigned)code, from, to};
    } else if (sscanf(line, "fail %63s %63s %d %llu %llu %llu", a, b, &code, &from, &to, &after) == 6) {
        fault_t *f = &faults[n_faults++];
        *f = (fault_t){.code = code, .from_us = from, .to_us = to, .after = after};
        strcpy(f->call, a), strcpy(f->unit, b);
    } else if (sscanf(line, "hang %63s %63s %llu", a, b, &from) == 3) {
        fault_t *f = &faults[n_faults++];
        *f = (fault_t){.code = -1, .from_us = from, .to_us = UINT64_MAX};
        strcpy(f->call, a), strcpy(f->unit, b);
    } else if (*line && *line != '#') {
        fprintf(stderr, "nvml stub: can't read: %s\n", line);
        abort();
    }
}

static void open_control(void) {
    const char *path = getenv("KEYTURN_NVML_CONTROL");
    int fd = path ? open(path, O_RDWR) : -1;
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    control = at == MAP_FAILED ? &nobody : at;
}

static int boottime;

uint64_t now_us(void) {
    struct timespec at;
    if (!boottime) return control->now_us;
    clock_gettime(CLOCK_BOOTTIME, &at);
    return (uint64_t)at.tv_sec * 1000000 + (uint64_t)at.tv_nsec / 1000;
}

int script_load(void) {
    char line[512];
    const char *path = getenv("KEYTURN_NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    open_control();
    if (!file) return -1;
    for (int i = 0; i < n_units; i++) free(units[i].points);
    n_units = n_faults = 0;
    memset(&host, 0, sizeof host);
    while (fgets(line, sizeof line, file)) read_line(line);
    fclose(file);
    const char *clock = host_property("clock");
    boottime = clock && !strcmp(clock, "boottime");
    return 0;
}

const char *property(const unit_t *unit, const char *key) {
    for (int i = 0; i < unit->n_properties; i++)
        if (!strcmp(unit->properties[i].key, key)) return unit->properties[i].value;
    return NULL;
}

const char *host_property(const char *key) { return property(&host, key); }

long long number(const unit_t *unit, const char *key, long long otherwise) {
    const char *value = property(unit, key);
    return value ? atoll(value) : otherwise;
}

/* What a counter shows at this time; good until the next call. */
static const point_t *grown(const point_t *point, uint64_t t_us) {
    static _Thread_local point_t now;
    now = *point;
    now.value += point->a_second * (double)t_us / 1e6;
    snprintf(now.text, sizeof now.text, "%.0f", now.value);
    return &now;
}

const point_t *value_now(const unit_t *unit, const char *name, uint64_t t_us) {
    const point_t *found = NULL;
    for (int i = 0; i < unit->n_points; i++)
        if (unit->points[i].t_us <= t_us && !strcmp(unit->points[i].name, name)) found = &unit->points[i];
    return found && found->a_second ? grown(found, t_us) : found;
}

/* A mean holds for the time since the point before it. */
int mean_between(const unit_t *unit, const char *name, uint64_t from_us, uint64_t to_us, double *mean) {
    uint64_t since = 0, covered = 0;
    double sum = 0;
    int known = 0;
    for (int i = 0; i < unit->n_points; i++) {
        const point_t *p = &unit->points[i];
        if (strcmp(p->name, name)) continue;
        known = 1;
        uint64_t begin = since > from_us ? since : from_us, end = p->t_us < to_us ? p->t_us : to_us;
        if (end > begin) {
            sum += p->value * (double)(end - begin);
            covered += end - begin;
        }
        since = p->t_us;
    }
    *mean = covered ? sum / (double)covered : 0.0 / 0.0;
    return known;
}

int fault(const char *call, const unit_t *unit) {
    for (int i = 0; i < n_faults; i++) {
        fault_t *f = &faults[i];
        if (*f->call != '*' && strcmp(f->call, call)) continue;
        if (*f->unit != '*' && (!unit || strcmp(f->unit, unit->name))) continue;
        if (now_us() < f->from_us || now_us() >= f->to_us) continue;
        if (f->seen++ < f->after) continue;
        if (f->code >= 0) return f->code;
        control->hanging++;
        while (!control->release) usleep(500);
        control->hanging--;
    }
    return 0;
}

unit_t *parent_of(const unit_t *unit) {
    char name[64];
    snprintf(name, sizeof name, "%s", unit->name);
    char *dot = strchr(name, '.');
    if (!dot) return NULL;
    *dot = 0;
    return unit_named(name);
}

/* "from" and "to" (µs): MIG devices come and go while the library is open. */
int destroyed(const unit_t *unit) {
    uint64_t from = (uint64_t)number(unit, "from", 0), to = (uint64_t)number(unit, "to", INT64_MAX);
    return now_us() < from || now_us() >= to;
}

unit_t *child(const unit_t *parent, int index) {
    char name[80];
    snprintf(name, sizeof name, "%s.%d", parent->name, index);
    for (int i = 0; i < n_units; i++)
        if (!strcmp(units[i].name, name)) return destroyed(&units[i]) ? NULL : &units[i];
    return NULL;
}
