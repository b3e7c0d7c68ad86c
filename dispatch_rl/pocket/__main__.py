"""Train a family of small models, or its students further: ``python -m dispatch_rl.pocket --config configs/pocket-recipe.yaml``."""

from collections.abc import Sequence

from dispatch_rl import cli
from dispatch_rl.errors import UserError
from dispatch_rl.pocket.recipe import Recipe

_DESCRIPTION = "Train a target and its students from scratch, or, with --init, go on with a finished family."


def main(argv: Sequence[str]) -> None:
    """Train, publish and measure a family; what a killed run has done is not done again."""
    parser = cli.make_parser(Recipe, "pocket", _DESCRIPTION)
    namespace = cli.parse(parser, argv)
    recipe = cli.build(Recipe, parser, namespace)
    for name in ("target/tokenizer.json", "TRAINING.md"):
        if recipe.init is not None and not (recipe.init / name).is_file():
            raise UserError(f"init: {recipe.init} is no family of this command; it has no {name}")

    from transformers import PreTrainedTokenizerFast

    from dispatch_rl.pocket import card, stdlib
    from dispatch_rl.pocket.corpus import Corpus, encode_files, folder_files, tokenizer_sample
    from dispatch_rl.pocket.publishing import publish
    from dispatch_rl.pocket.tokenizer import train_tokenizer
    from dispatch_rl.pocket.training import FamilyTrainer, denormals_as_zero, train_family

    recipe.output.mkdir(parents=True, exist_ok=True)
    _keep_recipe(recipe, parser.dump(namespace))
    files = [*stdlib.training_files(), *folder_files(recipe.folders)]
    kept = (recipe.init or recipe.output) / "target"
    if (kept / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(kept)
    else:
        tokenizer = train_tokenizer(tokenizer_sample(files, recipe.seed), recipe.vocab_size)
        tokenizer.save_pretrained(kept)
    print(f"reading {len(files)} files", flush=True)
    corpus = Corpus(tokenizer, encode_files(tokenizer, files), window=recipe.window, seed=recipe.seed)
    with denormals_as_zero():
        trainer = FamilyTrainer(recipe, tokenizer, corpus)
        train_family(trainer, lambda line: print(line, flush=True))
    publish(trainer.models, tokenizer, recipe)
    card.main([f"--folder={recipe.output}", f"--students=[{','.join(recipe.students)}]", f"--threads={recipe.threads}"])


def _keep_recipe(recipe: Recipe, text: str) -> None:
    """Write the recipe beside the weights; refuse to continue a training under another one."""
    path = recipe.output / "recipe.yaml"
    if path.exists() and path.read_text() != text:
        raise UserError(f"output: {recipe.output} holds a training with another recipe; choose another folder or remove it")
    path.write_text(text)


if __name__ == "__main__":
    cli.run(main)
