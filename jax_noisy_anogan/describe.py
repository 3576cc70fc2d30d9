"""Print what a data set holds: `python -m jax_noisy_anogan.describe --config FILE.py`.

Writes a contact sheet of examples; prepares the records first where they are missing.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from rich.console import Console

from jax_noisy_anogan import cli
from jax_noisy_anogan.config import Config, ConfigError, validate
from jax_noisy_anogan.data import summary
from jax_noisy_anogan.data.dataset import load_dataset
from jax_noisy_anogan.data.splits import make_split
from jax_noisy_anogan.runtime.files import user_path

_CONFIG = cli.define_config()
_SHEET = flags.DEFINE_string(
    "contact_sheet", None, "Where to write the contact sheet (PNG); beside the records by default"
)


def describe(config: Config, sheet: Path | None = None) -> None:
    """Print Table 1, properties and split counts, and write the contact sheet."""
    dataset = load_dataset(config.data, resolution=config.growth.resolution)
    split = make_split(dataset, config.data)
    console = Console()
    console.print(summary.table_1(dataset))
    console.print(summary.properties(dataset, split))
    console.print(summary.split_counts(dataset, split))
    for remark in dataset.remarks:
        console.print(remark, soft_wrap=True, markup=False, highlight=False)
    if dataset.left_out:
        report = dataset.write_report()
        kinds = summary.left_out_by_kind(dataset)
        console.print(f"left out {kinds}; listed in {report}", soft_wrap=True)
    path = sheet or dataset.path / "contact_sheet.png"
    summary.contact_sheet(dataset, path)
    console.print(f"contact sheet: {path}", soft_wrap=True)


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments)
    sheet = user_path(_SHEET.value, "--contact_sheet") if _SHEET.value else None
    if sheet is not None and (sheet.suffix.lower() != ".png" or not sheet.parent.is_dir()):
        raise ConfigError(f"--contact_sheet is {sheet}: expected a .png in an existing folder")
    describe(validate(_CONFIG.value), sheet)


if __name__ == "__main__":
    cli.run(main)
