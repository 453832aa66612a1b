"""The agent's NVML calls, once a second and nothing else; what no agent in Python can do with less."""

import time

import pynvml as n

METRICS = [2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 20, 21, 60, 61, 248, 249, 250, 251, 252, 253, 254, 258, 259, 260]


def main() -> None:
    n.nvmlInit()
    chips = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
    samples = [[n.nvmlGpmSampleAlloc(), n.nvmlGpmSampleAlloc()] for _ in chips]
    request = n.c_nvmlGpmMetricsGet_t()
    request.version, request.numMetrics = n.NVML_GPM_METRICS_GET_VERSION, len(METRICS)
    for slot, metric in enumerate(METRICS):
        request.metrics[slot].metricId = metric
    for chip, (first, _) in zip(chips, samples, strict=True):
        n.nvmlGpmSampleGet(chip, first)
    due, since, latest = time.monotonic() + 1, 0, 0
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        due += 1
        for chip, pair in zip(chips, samples, strict=True):
            n.nvmlGpmSampleGet(chip, pair[1])
            request.sample1, request.sample2 = pair
            n.nvmlGpmMetricsGet(request)
            pair.reverse()
            n.nvmlDeviceGetUtilizationRates(chip)
            n.nvmlDeviceGetCurrentClocksEventReasons(chip)
            n.nvmlDeviceGetTotalEnergyConsumption(chip)
            n.nvmlDeviceGetPowerUsage(chip)
            n.nvmlDeviceGetClockInfo(chip, n.NVML_CLOCK_SM)
            n.nvmlDeviceGetMemoryInfo(chip)
            n.nvmlDeviceGetComputeRunningProcesses(chip)
            for sample in n.nvmlDeviceGetProcessUtilization(chip, since):
                latest = max(latest, sample.timeStamp)
        since = latest


if __name__ == "__main__":
    main()
