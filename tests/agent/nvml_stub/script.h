/* The script of the stub: what each unit is, what it shows over time, and what fails. See README.md. */
#ifndef KEYTURN_STUB_SCRIPT_H
#define KEYTURN_STUB_SCRIPT_H

#include <stdint.h>

typedef struct {
    uint64_t now_us, release;                     /* set by the test */
    uint64_t sessions, buffers, hanging, openings; /* set by the stub */
    uint64_t reload;                              /* set by the test: read the script again, with what is open */
    uint64_t calls;                               /* set by the stub */
    uint64_t modes[64];                           /* compute mode + 1 of each unit, by its place; 0: as the script says */
} control_t;

typedef struct {
    char name[64];
    uint64_t t_us;
    double value, a_second; /* a counter grows by so much from time 0 on */
    char text[32]; /* as written: a double doesn't hold every uint64 */
} point_t;

typedef struct {
    char key[64];
    char value[128];
} property_t;

typedef struct {
    unsigned pid;
    long long mib, sm; /* -1: not available; mib -2: not running any more, and its utilization still told */
} process_t;

typedef struct {
    unsigned pid, percent;
    uint64_t from_us, time_ms;
} account_t; /* a record of a process that ended */

typedef struct {
    char name[64]; /* "0", or "0.1" for a MIG device */
    property_t properties[32];
    int n_properties;
    point_t *points;
    int n_points;
    process_t processes[16];
    int n_processes;
    account_t accounts[16];
    int n_accounts;
} unit_t;

typedef struct {
    char call[64], unit[64];
    int code; /* -1: hangs */
    uint64_t from_us, to_us, after, seen;
} fault_t;

extern unit_t units[64];
extern int n_units;
extern volatile control_t *control;

uint64_t now_us(void);                                   /* the test's time, or the host's */
int script_load(void);                                   /* 0, or -1 where there is none */
const char *host_property(const char *key);              /* NULL where it isn't set */
const char *property(const unit_t *unit, const char *key);
long long number(const unit_t *unit, const char *key, long long otherwise);
const point_t *value_now(const unit_t *unit, const char *name, uint64_t t_us);
int mean_between(const unit_t *unit, const char *name, uint64_t from_us, uint64_t to_us, double *mean);
int fault(const char *call, const unit_t *unit);         /* 0, or a return code; may hang */
int destroyed(const unit_t *unit);                        /* a MIG device before or after its time */
unit_t *child(const unit_t *parent, int index);          /* its MIG device, or NULL */
unit_t *parent_of(const unit_t *unit);                   /* NULL for a GPU */

#endif
