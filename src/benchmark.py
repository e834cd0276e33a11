"""Print what this machine reaches: `python -m src.benchmark suite=training`.

Everything that is compared runs in the same process or the same call, alternating; nothing is tested here, and nothing
leaves the machine.
"""

import hydra
from omegaconf import DictConfig

from src.config import CONF, Benchmark, read
from src.console import entry_point
from src.errors import ConfigError

SUITES = ("training",)


@hydra.main(config_path=CONF, config_name="benchmark", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    asked: Benchmark = read(cfg, Benchmark)
    if asked.suite not in SUITES:
        raise ConfigError("suite", asked.suite, f"one of {', '.join(SUITES)}")
    from src.benchmarks import training

    training.run(sizes=asked.sizes, batch_size=asked.batch_size, steps=asked.steps, repeats=asked.repeats,
                 demo=asked.demo)


if __name__ == "__main__":
    main()
