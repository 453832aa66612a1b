/* Functions of NVML that the agent doesn't call and other programs do, with the values of an idle corner of a host. */
#include "script.h"

#define API __attribute__((visibility("default")))
enum { NOT_SUPPORTED = 3 };

static int answer(unit_t *d, unsigned *out, unsigned value) {
    control->calls++;
    *out = value;
    return fault("other", d);
}
static int refuse(void) {
    control->calls++;
    return NOT_SUPPORTED;
}

API int nvmlDeviceGetGraphicsRunningProcesses_v3(unit_t *d, unsigned *count, void *out) { (void)out; return answer(d, count, 0); }
API int nvmlDeviceGetEncoderUtilization(unit_t *d, unsigned *part, unsigned *us) { *us = 167000; return answer(d, part, 0); }
API int nvmlDeviceGetDecoderUtilization(unit_t *d, unsigned *part, unsigned *us) { *us = 167000; return answer(d, part, 0); }
API int nvmlDeviceGetTemperature(unit_t *d, unsigned sensor, unsigned *c) { (void)sensor; return answer(d, c, 61); }
API int nvmlDeviceGetTemperatureV(unit_t *d, unsigned *reading /* version, sensor, °C */) { return answer(d, &reading[2], 61); }
API int nvmlDeviceGetPcieThroughput(unit_t *d, unsigned way, unsigned *kib_s) { (void)way; return answer(d, kib_s, 204800); }
API int nvmlDeviceGetDisplayActive(unit_t *d, unsigned *yes) { return answer(d, yes, 0); }
API int nvmlDeviceGetDisplayMode(unit_t *d, unsigned *yes) { return answer(d, yes, 0); }
API int nvmlDeviceGetPersistenceMode(unit_t *d, unsigned *yes) { return answer(d, yes, 1); }
API int nvmlDeviceGetPerformanceState(unit_t *d, unsigned *state) { return answer(d, state, 0); }
API int nvmlDeviceGetTotalEccErrors(unit_t *d, unsigned kind, unsigned counter, unsigned long long *count) {
    unsigned low;
    (void)kind, (void)counter;
    *count = 0;
    return answer(d, &low, 0);
}
API int nvmlDeviceGetFanSpeed(unit_t *d, unsigned *percent) { (void)d, (void)percent; return refuse(); }
API int nvmlDeviceGetCurrentDriverModel(unit_t *d, unsigned *model) { (void)d, (void)model; return refuse(); }
API int nvmlDeviceGetDriverModel_v2(unit_t *d, unsigned *now, unsigned *next) { (void)d, (void)now, (void)next; return refuse(); }
