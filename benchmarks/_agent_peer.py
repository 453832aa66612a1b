"""nvitop's collector, as its documentation has it run beside a training job, once a second."""

from nvitop import ResourceMetricCollector  # type: ignore[import-untyped]


def main() -> None:
    collector = ResourceMetricCollector(interval=1.0)
    collector.daemonize(on_collect=lambda _metrics: True, interval=10.0, tag="host").join()


if __name__ == "__main__":
    main()
