"""Print what this machine reaches: `python -m src.benchmark suite=training` (or `labeling`, `consensus`,
`guarantee`, `inference`, `serving`, `tracking`).

Everything that is compared runs in the same process or the same call, alternating; nothing is tested here, and nothing
leaves the machine.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config import CONF, Benchmark, output_folder, read
from src.console import entry_point
from src.errors import ConfigError

SUITES = ("training", "labeling", "consensus", "guarantee", "inference", "serving", "tracking")


@hydra.main(config_path=CONF, config_name="benchmark", version_base="1.3")
@entry_point
def main(cfg: DictConfig) -> None:
    asked: Benchmark = read(cfg, Benchmark)
    if asked.suite not in SUITES:
        raise ConfigError("suite", asked.suite, f"one of {', '.join(SUITES)}")
    if asked.suite == "consensus":
        from src.benchmarks import consensus

        reviews, chart = (Path(name).expanduser() if name else None for name in (asked.reviews, asked.chart))
        consensus.run(spend=asked.spend, shares=asked.shares, seeds=asked.seeds, reviews=reviews, out=output_folder(),
                      chart=chart)
        return
    if asked.suite == "guarantee":
        from src.benchmarks import guarantee

        guarantee.run()
        return
    if asked.suite == "tracking":
        from src.benchmarks import tracking

        tracking.run(epochs=asked.steps, repeats=asked.repeats)
        return
    if asked.suite == "inference":
        from src.benchmarks import inference, students

        known = students.known(asked.runs, uri=asked.tracking.uri, home=Path(asked.home), out=output_folder())
        inference.run(sizes=sorted(known) or asked.input_sizes, batches=asked.batches, repeats=asked.repeats,
                      students=known)
        return
    if asked.suite == "serving":
        from src.benchmarks import serving

        serving.run(runs=asked.runs, uri=asked.tracking.uri, home=Path(asked.home), out=output_folder(),
                    repeats=asked.repeats, load_s=asked.load_s, log_decisions=asked.log_decisions,
                    replay_decisions=asked.replay_decisions)
        return
    if asked.suite == "labeling":
        from src.benchmarks import labeling

        labeling.run(repeats=asked.repeats, concurrency=asked.concurrency, latency_s=asked.latency_s,
                     waves=asked.waves, requests=asked.requests, rate=asked.rate, bucket_s=asked.bucket_s,
                     stored_items=asked.stored_items, labelled_items=asked.labelled_items)
        return
    from src.benchmarks import training

    training.run(sizes=asked.sizes, batch_size=asked.batch_size, steps=asked.steps, repeats=asked.repeats,
                 demo=asked.demo)


if __name__ == "__main__":
    main()
