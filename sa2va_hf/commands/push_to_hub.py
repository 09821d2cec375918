"""Publish a model folder, or a prepared dataset, on the Hub.

    python scripts/push_to_hub.py --model outputs/mine_merged --repo USER/NAME [--private]
    python scripts/push_to_hub.py --model outputs/mine_merged --repo USER/NAME --metrics metrics.json --license mit
    python scripts/push_to_hub.py --model outputs/mine_merged --export_only      # write card and code, upload nothing
    python scripts/push_to_hub.py --dataset data/prepared/mine --repo USER/NAME

A model is uploaded in one commit, with its card and its code: AutoModel.from_pretrained(NAME, trust_remote_code=True)
loads it where only transformers and sam2 are installed. After an interruption run the same command again: files that
the Hub has already are not uploaded twice. A dataset needs embedded media (prepare_data.py --embed_media); train on
it as hf://datasets/USER/NAME. The token is the one of `hf auth login`, or HF_TOKEN.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from sa2va_hf.command_line import mistakes


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="model folder, or the adapter folder of a LoRA run")
    what.add_argument("--dataset", type=Path, help="folder that prepare_data.py wrote")
    parser.add_argument("--repo", metavar="USER/NAME", help="repository; it is created where it is missing")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--revision", help="branch to upload to (default: main)")
    parser.add_argument("--metrics", type=Path, nargs="*", default=[], help="of evaluate.py, for the card")
    parser.add_argument("--license", help="licence, for the card, e.g. apache-2.0")
    parser.add_argument("--language", nargs="*", default=[], help="languages, for the card, e.g. en")
    parser.add_argument("--base_model", metavar="HUB_ID", help="what was fine-tuned or converted, for the card")
    parser.add_argument("--export_only", action="store_true", help="complete the model folder and upload nothing")
    return parser


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments.repo and not arguments.export_only:
        parser.error("--repo is missing: USER/NAME, or --export_only to upload nothing")
    if arguments.dataset:
        from sa2va_hf.data.prepare.publish import push_dataset

        address = push_dataset(arguments.dataset, arguments.repo, private=arguments.private, license=arguments.license)
    else:
        address = publish_model(arguments)
    print(f"uploaded: {address}" if address else f"completed: {arguments.model}")


def publish_model(arguments: argparse.Namespace) -> str | None:
    """Complete the folder, and upload it unless told otherwise; returns the commit's address."""
    from sa2va_hf.checkpoints.card import Facts, scores_of
    from sa2va_hf.checkpoints.hub import amend_card, export, push

    facts = Facts(
        base=arguments.base_model,
        license=arguments.license,
        languages=arguments.language,
        scores=[score for file in arguments.metrics for score in scores_of(file)],
    )
    export(arguments.model, repo_id=arguments.repo)
    amend_card(arguments.model, facts)
    if arguments.export_only:
        return None
    return push(arguments.model, arguments.repo, private=arguments.private, revision=arguments.revision)


if __name__ == "__main__":
    main()
