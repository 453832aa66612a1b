"""The operators' page of the agent is held to the code."""

import re
import tomllib

from keyturn_agent.config import Config, key_of, names
from keyturn_agent.metrics import Health, of_agent, of_chips
from keyturn_agent.settings import parse
from tests.agent.samples import chip, reading
from tests.agent.test_metrics import HEALTH
from tests.support.paths import REPO

PAGE = (REPO / "docs" / "operations-agent.md").read_text()
OFF = {
    "upload.proxy", "upload.ca_file", "switch.exec_socket", "switch.gate", "switch.gate_socket", "metrics.listen",
    "metrics.textfile",
}  # fmt: skip


def test_the_configuration_shown_has_every_key_with_its_default() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    shown = parse(tomllib.loads(block))
    assert set(shown) == set(names())
    default = Config()
    for name, value in shown.items():
        if key_of(name).name in OFF:
            assert getattr(default, name) is None
        else:
            assert value == getattr(default, name), key_of(name).name


def test_every_metric_is_named() -> None:
    everything = reading(
        energy_mj=1, power_mw=1, busy_ppm=1, memory_mib=1, sm_active_ppm=1, tensor_ppm=1, dram_ppm=1, throttled_ppm=1,
        sm_clock_mhz=1, pcie_tx_kib=1, pcie_rx_kib=1,
    )  # fmt: skip
    made = [*of_agent(Health(**HEALTH | {"last_receipt_s": 1})), *of_chips([chip("GPU-0")], [everything], "h")]
    named = PAGE.replace("`…_", "`keyturn_agent_")
    missing = [family.name for family in made if f"`{family.name}`" not in named]
    assert missing == []
    assert len(made) > 15
