"""Whether everything that the placement quantises for TensorRT runs in int8, none expanded.

    python tests/benchmarks/engine_proof.py --work /tmp/engines

For each network the ONNX file says which convolutions and matrix products have Q/DQ on both
operands; TensorRT-RTX builds it on the CPU, and its list of layers says what each of them became.
Exit status 1 where one of them is not int8.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine_table import made

NETWORKS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "vit_b_16",
)  # fmt: skip


def main() -> int:
    from vcompress.bench.engine import Settings, build_engine
    from vcompress.export.engine_proof import prove

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sm", type=int, nargs="+", default=[89])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    good = True
    print("| network | SM | rest | quantised | int8 | expanded | left in floating point |")
    print("|---|---|---|---|---|---|---|")
    for name in asked.networks:
        *_, int8, both = made(name, asked.work)
        for sm in asked.sm:
            for file, rest in ((int8, "float32"), (both, "float16")):
                settings = Settings(flavour="tensorrt-rtx", sm=(sm,))
                report = build_engine(file, asked.work / "proof.engine", settings)
                assert report.layers is not None, report.layers_missing
                proof = prove(file, report.layers)
                print(
                    f"| {name} | {sm} | {rest} | {len(proof.quantised)} | {proof.low} | "
                    f"{len(proof.expanded)} | {len(proof.plain)} |",
                    flush=True,
                )
                for node, what in proof.missed:
                    print(f"  {node}: {what}")
                for node in proof.expanded:
                    print(f"  {node}: its weights are expanded at run time")
                good = good and proof.ok and len(proof.quantised) > 0
    (asked.work / "proof.engine").unlink(missing_ok=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
