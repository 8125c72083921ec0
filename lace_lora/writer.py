"""Answers of a language model: asked in its chat format, written under a grammar, checked, asked again if need be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lace_lora import constraint as constraints
from lace_lora import dialogues, language_models
from lace_lora.dialogues import Message
from lace_lora.families.quiet import quiet
from lace_lora.recipe import Direction, Recipe
from lace_lora.validate import Issue, Validator

with quiet():
    import torch
    from transformers import GenerationConfig

Complete = Callable[[Sequence[Sequence[Message]]], list[str]]


@dataclass(frozen=True)
class Written:
    """One answer.

    text      as it is handed out: of a document in canonical form, where it could be read
    raw       as the model wrote it last
    document  what is in it; None where it could not be read, and for words
    attempts  how often the model was asked
    """

    asked: str
    text: str
    raw: str
    document: Any
    issues: tuple[Issue, ...]
    attempts: int

    @property
    def is_valid(self) -> bool:
        """Whether the last attempt was right."""
        return not self.issues


@dataclass(frozen=True)
class Writer:
    """Turns texts into documents, or documents into texts.

    complete   from conversations to what the model writes after each
    validator  of the recipe; on the way back any words will do, and it only reads the documents
    """

    recipe: Recipe
    complete: Complete
    validator: Validator
    direction: Direction = "forward"

    def write(self, asked: Sequence[str], attempts: int | None = None) -> list[Written]:
        """An answer to each. What is not valid is asked for again, with the reasons, `attempts` times in all."""
        most = attempts or self.recipe.attempts
        talks = [dialogues.messages(self.recipe, self.direction, self._as_learnt(text)) for text in asked]
        answers: list[Written | None] = [None] * len(asked)
        for attempt in range(1, most + 1):
            open_ones = [place for place, found in enumerate(answers) if found is None or not found.is_valid]
            if not open_ones:
                break
            for place, raw in zip(open_ones, self.complete([talks[place] for place in open_ones]), strict=True):
                found = self._looked_at(asked[place], raw, attempt)
                answers[place] = found
                talks[place] = dialogues.again(talks[place][:2], raw, [str(issue) for issue in found.issues])
        return [found for found in answers if found is not None]

    def _as_learnt(self, asked: str) -> str:
        """On the way back a document in the one form in which documents were learnt; one that is none as it is."""
        found = self.validator.check(asked).document if self.direction == "back" else None
        return asked if found is None else self.validator.written(found)

    def _looked_at(self, asked: str, raw: str, attempt: int) -> Written:
        if self.direction == "back":
            return Written(asked, raw.strip(), raw, None, (), attempt)
        first = self.validator.check(raw)
        if first.document is None:
            return Written(asked, raw, raw, None, first.issues, attempt)
        # What is put right by itself (order, decimals) is no reason to ask again.
        right = self.validator.put_right(first.document)
        return Written(asked, right.text, raw, right.document, right.issues, attempt)


def writer(
    model: Any, tokenizer: Any, recipe: Recipe, validator: Validator, direction: Direction = "forward"
) -> Writer:
    """A writer with a model: constrained as the recipe says, on the way to documents."""
    is_forward = direction == "forward"
    stops = language_models.stops_of(model, tokenizer)
    size = int(model.config.get_text_config().vocab_size)
    rule = constraints.compiled(recipe, tokenizer, size, stops) if is_forward else None
    return Writer(recipe, completion(model, tokenizer, recipe, rule, stops), validator, direction)


def completion(
    model: Any, tokenizer: Any, recipe: Recipe, rule: constraints.Constraint | None, stops: list[int]
) -> Complete:
    """A function that has a model go on with conversations, all at once; left out of the text are marks of the chat."""
    warm = recipe.temperature > 0
    chance = {"do_sample": True, "temperature": recipe.temperature, "top_k": 0, "top_p": 1.0} if warm else {}
    settings = GenerationConfig(
        max_new_tokens=recipe.max_new_tokens, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, **(chance or {"do_sample": False}),
    )  # fmt: skip

    def complete(talks: Sequence[Sequence[Message]]) -> list[str]:
        prompts = [
            tokenizer.apply_chat_template(
                dialogues.fitting(tokenizer, talk), tokenize=False, add_generation_prompt=True
            )
            for talk in talks
        ]
        # The template has written what begins a conversation.
        given = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids, mask = given["input_ids"].to(model.device), given["attention_mask"].to(model.device)
        with torch.no_grad(), quiet():
            written = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=settings,
                logits_processor=rule.processors() if rule else None,
            )  # fmt: skip
        rests = written[:, ids.shape[1] :]
        return [str(text) for text in tokenizer.batch_decode(rests, skip_special_tokens=True)]

    return complete


class CADJSONGenerator:
    """From words to a CAD document, for those who expect this name: `generate(text)["json"]`."""

    def __init__(self, model: Any, tokenizer: Any, validator: Validator) -> None:
        self._writer = writer(model, tokenizer, validator.recipe, validator)

    def generate(self, text: str) -> dict[str, Any]:
        """json (the document, None where none could be read), text, is_valid, attempts, issues (a sentence each)."""
        (found,) = self._writer.write([text])
        return {
            "json": self._writer.validator.finished(found.document),
            "text": found.text,
            "is_valid": found.is_valid,
            "attempts": found.attempts,
            "issues": [str(issue) for issue in found.issues],
        }
