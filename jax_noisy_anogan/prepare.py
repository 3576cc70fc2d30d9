"""Write a data set's records once: `python -m jax_noisy_anogan.prepare --config FILE.py`.

Interrupted, it goes on where it stopped when it is run again.
"""

from __future__ import annotations

from jax_noisy_anogan import cli
from jax_noisy_anogan.config import Config, validate
from jax_noisy_anogan.data import summary
from jax_noisy_anogan.data.dataset import load_dataset

_CONFIG = cli.define_config()
_SHOWN = 20


def prepare(config: Config) -> None:
    """Prepare the data set of a validated config and print what became of its files."""
    dataset = load_dataset(config.data, resolution=config.growth.resolution)
    print(f"{dataset.name}: {len(dataset):,} images at {dataset.resolutions} in {dataset.path}")
    for remark in dataset.remarks:
        print(remark)
    report = dataset.write_report()
    if dataset.left_out:
        for item in dataset.left_out[:_SHOWN]:
            print(f"left out {item.file}: {item.reason}")
        print(f"left out in all {summary.left_out_by_kind(dataset)}; listed in {report}")


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments)
    prepare(validate(_CONFIG.value))


if __name__ == "__main__":
    cli.run(main)
