"""`dinomed bundle`: which bundles there are, and whether one is sound."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's arguments."""
    parser = verbs.add_parser("bundle", help="list bundles, or check one", description=__doc__)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="list the bundles that can be named",
        description="List the bundles in ./bundles, in the folders of DINOMED_BUNDLES and beside the source tree.",
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)
    check = actions.add_parser(
        "check",
        help="check a bundle's files, metadata, configs and weights",
        description="Check a bundle; one line per finding, exit status 2 if one is bad.",
    )
    check.add_argument("bundle", metavar="NAME_OR_PATH")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=run_check)


def run_list(arguments: argparse.Namespace) -> int:
    """Print the bundles that were found."""
    from dinomed.bundle.locate import list_bundles, search_folders

    bundles = list_bundles()
    if arguments.json:
        rows = [
            {**asdict(info), "root": str(info.root), "weights": str(info.weights) if info.weights else None}
            for info in bundles
        ]
        print(json.dumps(rows, indent=2))
        return 0
    if not bundles:
        print("no bundle found in", ", ".join(map(str, search_folders())) or "./bundles")
    for info in bundles:
        weights = "weights" if info.weights else "no weights"
        print(f"{info.name}  {info.version}  {weights}  {info.root}")
        for text in (info.task, info.description):
            if text:
                print(f"    {text}")
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """Print every finding about a bundle.

    Raises:
        BundleError: If it is not there or is no bundle at all.
    """
    from dinomed.bundle.locate import find_bundle
    from dinomed.cli.quiet import quiet

    root = find_bundle(arguments.bundle)  # before MONAI is imported, which takes seconds
    with quiet():
        from dinomed.bundle.check import check_bundle

        findings = check_bundle(root)
    failed = sum(not finding.ok for finding in findings)
    if arguments.json:
        print(json.dumps({"bundle": str(root), "failed": failed, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        for finding in findings:
            print(
                f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}"
                + (f": {finding.reason}" if finding.reason else "")
            )
        print(f"{root.name}: {len(findings) - failed} of {len(findings)} checks passed")
    return 2 if failed else 0
