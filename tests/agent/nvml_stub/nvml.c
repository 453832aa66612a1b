/* The functions of NVML that the agent calls, with the ABI of nvml.h. Everything else is in script.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "script.h"

#ifndef GENERATION
#define GENERATION 1
#endif
#define API __attribute__((visibility("default")))

enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, LIB_RM_VERSION_MISMATCH = 18, ARGUMENT_VERSION_MISMATCH = 25, UNKNOWN = 999
};

typedef unit_t *device_t;
typedef struct { unit_t *unit; uint64_t t_us; } sample_t;
typedef struct {
    unsigned metric, code;
    double value;
    const char *short_name, *long_name, *unit;
} metric_t;
typedef struct { unsigned version, count; sample_t *first, *second; metric_t metrics[]; } metrics_t;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_info_t;
typedef struct { unsigned pid; unsigned long long t_us; unsigned sm, memory, encoder, decoder; } process_use_t;
typedef struct {
    unsigned sms, copy, decoders, encoders, jpeg, ofa, gpu_slices, compute_slices;
    unsigned long long memory_mib;
} attributes_t;
typedef struct {
    unsigned version;
    unsigned char cluster[16];
    unsigned status, clique, state, health;
} fabric_t;

static int sessions;

static int entry(const char *call, const unit_t *unit) {
    control->calls++;
    if (!sessions) return UNINITIALIZED;
    /* Units keep their places, and so handles their meaning. */
    if (control->reload && !script_load()) control->reload = 0;
    if (unit && destroyed(unit)) return INVALID_ARGUMENT;
    return fault(call, unit);
}
#define ENTER(unit) do { int code_ = entry(__func__, unit); if (code_) return code_; } while (0)

static int text(char *out, unsigned size, const char *value) {
    if (!value) return NOT_SUPPORTED;
    if (strlen(value) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return OK;
}

static int u32(unsigned *out, const unit_t *unit, const char *name) {
    const point_t *p = value_now(unit, name, now_us());
    if (!p) return NOT_SUPPORTED;
    *out = (unsigned)strtoull(p->text, NULL, 10);
    return OK;
}

static int fixed(unsigned *out, const unit_t *unit, const char *key) {
    long long value = number(unit, key, -1);
    if (value < 0) return NOT_SUPPORTED;
    *out = (unsigned)value;
    return OK;
}

/* --- the library -------------------------------------------------------------------------------------------- */

API int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (script_load()) return DRIVER_NOT_LOADED;
    int code = fault(__func__, NULL);
    if (code) return code;
    const char *kernel = host_property("kernel");
    if (kernel && atoi(kernel) != GENERATION) return LIB_RM_VERSION_MISMATCH;
    sessions++;
    control->sessions++;
    control->openings++;
    return OK;
}

API int nvmlShutdown(void) {
    if (!sessions) return UNINITIALIZED;
    sessions--;
    control->sessions--;
    return OK;
}

API const char *nvmlErrorString(int code) {
    static char buffer[32];
    snprintf(buffer, sizeof buffer, "stub error %d", code);
    return buffer;
}

API int nvmlSystemGetDriverVersion(char *out, unsigned size) { ENTER(NULL); return text(out, size, host_property("driver")); }
API int nvmlSystemGetNVMLVersion(char *out, unsigned size) { ENTER(NULL); return text(out, size, host_property("nvml")); }
static int cuda(int *out) {
    const char *value = host_property("cuda");
    if (!value) return NOT_SUPPORTED;
    *out = atoi(value);
    return OK;
}
API int nvmlSystemGetCudaDriverVersion(int *out) { ENTER(NULL); return cuda(out); }
#ifndef OLD_DRIVER
API int nvmlSystemGetCudaDriverVersion_v2(int *out) { ENTER(NULL); return cuda(out); }
#endif

/* --- what a device is --------------------------------------------------------------------------------------- */

API int nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER(NULL);
    *count = 0;
    for (int i = 0; i < n_units; i++) *count += !parent_of(&units[i]);
    return OK;
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
    for (int i = 0; i < n_units; i++)
        if (!parent_of(&units[i]) && !index--) {
            ENTER(&units[i]);
            *device = &units[i];
            return OK;
        }
    return sessions ? INVALID_ARGUMENT : UNINITIALIZED;
}

API int nvmlDeviceGetUUID(device_t d, char *out, unsigned size) { ENTER(d); return text(out, size, property(d, "uuid")); }
API int nvmlDeviceGetName(device_t d, char *out, unsigned size) { ENTER(d); return text(out, size, property(d, "name")); }

API int nvmlDeviceGetPciInfo_v3(device_t d, pci_t *info) {
    ENTER(d);
    const char *bus = property(d, "bus");
    memset(info, 0, sizeof *info);
    if (!bus) return NOT_SUPPORTED;
    if (sscanf(bus, "%x:%x:%x", &info->domain, &info->bus, &info->device) != 3) return UNKNOWN;
    snprintf(info->legacy, sizeof info->legacy, "%04X:%02X:%02X.0", info->domain & 0xffff, info->bus & 0xff, info->device & 0xff);
    snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:%02X.0", info->domain, info->bus, info->device);
    return OK;
}

API int nvmlDeviceGetMaxClockInfo(device_t d, unsigned type, unsigned *mhz) {
    ENTER(d);
    return type < 4 ? fixed(mhz, d, "clock_max_mhz") : INVALID_ARGUMENT;
}
API int nvmlDeviceGetPowerManagementLimit(device_t d, unsigned *mw) { ENTER(d); return fixed(mw, d, "power_limit_mw"); }
API int nvmlDeviceGetCudaComputeCapability(device_t d, int *major, int *minor) {
    ENTER(d);
    int code = fixed((unsigned *)major, d, "cc_major");
    return code ? code : fixed((unsigned *)minor, d, "cc_minor");
}
#ifndef OLD_DRIVER
API int nvmlDeviceGetNumGpuCores(device_t d, unsigned *cores) { ENTER(d); return fixed(cores, d, "cores"); }
API int nvmlDeviceGetGpuFabricInfoV(device_t d, fabric_t *info) {
    ENTER(d);
    const char *hex = property(d, "fabric"); /* 32 hex digits */
    if (info->version != 0x02000024 || sizeof *info != 0x24) return ARGUMENT_VERSION_MISMATCH;
    if (!hex) return NOT_SUPPORTED;
    for (int i = 0; i < 16; i++) {
        unsigned byte;
        sscanf(hex + 2 * i, "%2x", &byte);
        info->cluster[i] = (unsigned char)byte;
    }
    info->status = OK, info->clique = (unsigned)number(d, "clique", 0), info->state = 3, info->health = 0;
    return OK;
}
#endif

API int nvmlDeviceGetNvLinkState(device_t d, unsigned link, unsigned *active) {
    ENTER(d);
    long long links = number(d, "links", -1), total = number(d, "links_total", 18);
    if (links < 0) return NOT_SUPPORTED;
    if (link >= total) return INVALID_ARGUMENT;
    *active = link < links;
    return OK;
}

/* --- MIG ---------------------------------------------------------------------------------------------------- */

API int nvmlDeviceGetMigMode(device_t d, unsigned *now, unsigned *pending) {
    ENTER(d);
    int code = fixed(now, d, "mig");
    *pending = *now;
    return code;
}
API int nvmlDeviceGetMaxMigDeviceCount(device_t d, unsigned *count) { ENTER(d); *count = 7; return OK; }
API int nvmlDeviceGetMigDeviceHandleByIndex(device_t d, unsigned index, device_t *out) {
    ENTER(d);
    *out = child(d, (int)index);
    return *out ? OK : NOT_FOUND;
}
API int nvmlDeviceGetGpuInstanceId(device_t d, unsigned *id) { ENTER(d); return fixed(id, d, "gpu_instance"); }
API int nvmlDeviceGetAttributes_v2(device_t d, attributes_t *out) {
    ENTER(d);
    if (!parent_of(d)) return INVALID_ARGUMENT;
    memset(out, 0, sizeof *out);
    out->sms = (unsigned)number(d, "sms", 0);
    out->memory_mib = (unsigned long long)number(d, "memory_mib_total", 0);
    out->gpu_slices = (unsigned)number(d, "gpu_slices", 1);
    out->compute_slices = (unsigned)number(d, "compute_slices", 1);
    return OK;
}

/* --- compute mode: the driver's, not the process's, so it is in the control file; a reboot clears it ------------- */

/* NVML sets none on a divided GPU or its instances; a unit with a property `compute_mode` has one all the same. */
static int has_mode(device_t d) { return property(d, "compute_mode") || (!parent_of(d) && number(d, "mig", 0) != 1); }
API int nvmlDeviceGetComputeMode(device_t d, unsigned *mode) {
    ENTER(d);
    if (!has_mode(d)) return NOT_SUPPORTED;
    uint64_t set = control->modes[d - units];
    *mode = set ? (unsigned)set - 1 : (unsigned)number(d, "compute_mode", 0);
    return OK;
}
API int nvmlDeviceSetComputeMode(device_t d, unsigned mode) {
    ENTER(d);
    if (mode > 3) return INVALID_ARGUMENT;
    if (!has_mode(d)) return NOT_SUPPORTED;
    control->modes[d - units] = mode + 1;
    return OK;
}
API int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *device) {
    for (int i = 0; i < n_units; i++)
        if (property(&units[i], "uuid") && !strcmp(property(&units[i], "uuid"), uuid)) {
            ENTER(&units[i]);
            *device = &units[i];
            return OK;
        }
    return sessions ? NOT_FOUND : UNINITIALIZED;
}

/* --- what a device does ------------------------------------------------------------------------------------- */

API int nvmlDeviceGetMemoryInfo(device_t d, memory_t *out) {
    ENTER(d);
    const point_t *used = value_now(d, "memory_mib", now_us());
    if (!used && !property(d, "memory_mib_total")) return NOT_SUPPORTED;
    out->total = (unsigned long long)number(d, "memory_mib_total", 0) << 20;
    out->used = used ? strtoull(used->text, NULL, 10) << 20 : ~0ULL;
    out->free = used ? out->total - out->used : ~0ULL;
    return OK;
}
API int nvmlDeviceGetClockInfo(device_t d, unsigned type, unsigned *mhz) {
    ENTER(d);
    return type < 4 ? u32(mhz, d, type == 1 ? "clock_mhz" : "clock_other_mhz") : INVALID_ARGUMENT;
}
API int nvmlDeviceGetPowerUsage(device_t d, unsigned *mw) { ENTER(d); return u32(mw, d, "power_mw"); }
API int nvmlDeviceGetTotalEnergyConsumption(device_t d, unsigned long long *mj) {
    ENTER(d);
    const point_t *p = value_now(d, "energy_mj", now_us());
    if (!p) return NOT_SUPPORTED;
    *mj = strtoull(p->text, NULL, 10);
    return OK;
}
API int nvmlDeviceGetUtilizationRates(device_t d, utilization_t *out) {
    ENTER(d);
    out->memory = 0;
    return parent_of(d) ? NOT_SUPPORTED : u32(&out->gpu, d, "busy_percent");
}
static int reasons(device_t d, unsigned long long *out) {
    unsigned value = 0;
    int code = u32(&value, d, "reasons");
    *out = value;
    return code;
}
API int nvmlDeviceGetCurrentClocksThrottleReasons(device_t d, unsigned long long *out) { ENTER(d); return reasons(d, out); }
#ifndef OLD_DRIVER
API int nvmlDeviceGetCurrentClocksEventReasons(device_t d, unsigned long long *out) { ENTER(d); return reasons(d, out); }
#endif

static int processes(device_t d, unsigned *count, process_info_t *out) {
    unsigned room = *count, listed = 0;
    *count = 0;
    for (int i = 0; i < d->n_processes; i++) *count += d->processes[i].mib != -2;
    if (!*count) return OK;
    if (!out || room < *count) return INSUFFICIENT_SIZE;
    for (int i = 0; i < d->n_processes; i++) {
        const process_t *p = &d->processes[i];
        if (p->mib == -2) continue;
        out[listed++] = (process_info_t){p->pid, p->mib < 0 ? ~0ULL : (unsigned long long)p->mib << 20, ~0U, ~0U};
    }
    return OK;
}
API int nvmlDeviceGetComputeRunningProcesses_v2(device_t d, unsigned *count, process_info_t *out) {
    ENTER(d);
    return processes(d, count, out);
}
#ifndef OLD_DRIVER
API int nvmlDeviceGetComputeRunningProcesses_v3(device_t d, unsigned *count, process_info_t *out) {
    ENTER(d);
    return processes(d, count, out);
}
#endif
API int nvmlDeviceGetProcessUtilization(device_t d, process_use_t *out, unsigned *count, unsigned long long since) {
    ENTER(d);
    if (parent_of(d)) return NOT_SUPPORTED;
    unsigned found = 0;
    for (int i = 0; i < d->n_processes; i++) {
        if (d->processes[i].sm < 0 || now_us() <= since) continue;
        if (out) out[found] = (process_use_t){d->processes[i].pid, now_us(), (unsigned)d->processes[i].sm, 0, 0, 0};
        found++;
    }
    *count = found;
    if (!found) return NOT_FOUND;
    return out ? OK : INSUFFICIENT_SIZE;
}

typedef struct {
    unsigned gpu, memory;
    unsigned long long max_memory, time_ms, start_us;
    unsigned running, reserved[5];
} accounting_t;

API int nvmlDeviceGetAccountingMode(device_t d, unsigned *mode) {
    ENTER(d);
    return parent_of(d) ? NOT_SUPPORTED : fixed(mode, d, "accounting");
}
API int nvmlDeviceGetAccountingBufferSize(device_t d, unsigned *size) { ENTER(d); *size = 16; return OK; }
API int nvmlDeviceGetAccountingPids(device_t d, unsigned *count, unsigned *pids) {
    ENTER(d);
    unsigned found = 0;
    for (int i = 0; i < d->n_accounts; i++)
        if (control->now_us >= d->accounts[i].from_us && found < *count) pids[found++] = d->accounts[i].pid;
    *count = found;
    return OK;
}
API int nvmlDeviceGetAccountingStats(device_t d, unsigned pid, accounting_t *out) {
    ENTER(d);
    for (int i = 0; i < d->n_accounts; i++) {
        const account_t *a = &d->accounts[i];
        if (a->pid != pid || control->now_us < a->from_us) continue;
        *out = (accounting_t){.gpu = a->percent, .time_ms = a->time_ms, .start_us = a->from_us - 1000 * a->time_ms};
        return OK;
    }
    return NOT_FOUND;
}

/* --- GPM ---------------------------------------------------------------------------------------------------- */
#ifndef OLD_DRIVER

API int nvmlGpmQueryDeviceSupport(device_t d, unsigned *support /* version, isSupportedDevice */) {
    ENTER(d);
    if (support[0] != 1) return ARGUMENT_VERSION_MISMATCH;
    support[1] = (unsigned)number(d, "gpm", 0);
    return OK;
}
API int nvmlGpmSampleAlloc(sample_t **out) {
    ENTER(NULL);
    *out = calloc(1, sizeof **out);
    control->buffers++;
    return OK;
}
API int nvmlGpmSampleFree(sample_t *sample) {
    ENTER(NULL);
    free(sample);
    control->buffers--;
    return OK;
}
API int nvmlGpmSampleGet(device_t d, sample_t *sample) {
    ENTER(d);
    if (!number(d, "gpm", 0) || parent_of(d)) return NOT_SUPPORTED;
    *sample = (sample_t){d, now_us()};
    return OK;
}
API int nvmlGpmMigSampleGet(device_t d, unsigned gpu_instance, sample_t *sample) {
    for (int i = 0; i < 7; i++) {
        unit_t *device = child(d, i);
        if (!device || number(device, "gpu_instance", -1) != gpu_instance) continue;
        ENTER(device);
        *sample = (sample_t){device, now_us()};
        return OK;
    }
    return sessions ? NOT_FOUND : UNINITIALIZED;
}
API int nvmlGpmMetricsGet(metrics_t *get) {
    if (get->version != 1) return ARGUMENT_VERSION_MISMATCH;
    if (!get->first || !get->second || !get->first->unit || get->first->unit != get->second->unit) return INVALID_ARGUMENT;
    unit_t *unit = get->first->unit;
    ENTER(unit);
    uint64_t from = get->first->t_us, to = get->second->t_us;
    for (unsigned i = 0; i < get->count; i++) {
        metric_t *m = &get->metrics[i];
        char name[32], call[48];
        snprintf(name, sizeof name, "g%u", m->metric);
        snprintf(call, sizeof call, "metric:%u", m->metric); /* what `fail` calls a single metric */
        m->code = (unsigned)fault(call, unit);
        if (m->code) continue;
        if (m->metric >= 248) {
            const point_t *p = value_now(unit, name, to);
            m->code = value_now(unit, name, UINT64_MAX) ? OK : NOT_SUPPORTED;
            m->value = p ? p->value : 0.0 / 0.0;
        } else {
            m->code = mean_between(unit, name, from, to, &m->value) ? OK : NOT_SUPPORTED;
        }
        /* Too close together: the driver has nothing to divide by. */
        if (to < from + 100000) m->value = 0.0 / 0.0;
    }
    return OK;
}
#endif
