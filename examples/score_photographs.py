"""Score photographs with a finished run, from Python.

    python examples/score_photographs.py --workdir runs/mine a.png b.png

Prints a line per photograph, most abnormal first.
"""

from __future__ import annotations

import argparse

import jax_noisy_anogan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", required=True, help="folder of a finished run")
    parser.add_argument("photographs", nargs="+")
    arguments = parser.parse_args()

    detector = jax_noisy_anogan.load(arguments.workdir)
    found = zip(arguments.photographs, detector.score(arguments.photographs), strict=True)
    for path, detection in sorted(found, key=lambda pair: -pair[1].anomaly):
        decision = "abnormal" if detection.is_abnormal else "normal"
        print(f"{path}: {decision}, anomaly {detection.anomaly:.3f}, box {detection.box}")


if __name__ == "__main__":
    main()
