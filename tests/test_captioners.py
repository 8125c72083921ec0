"""Captioners: tiny models of the true classes, and a real server on this machine that behaves well and badly."""

import base64
import gc
import http.server
import io
import itertools
import json
import logging
import sys
import threading
import traceback
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy
import pytest
from PIL import Image, PngImagePlugin
from pydantic import SecretStr

from lace_lora import captioner_http, captioners, image_files
from lace_lora.errors import LaceError, MachineError, ModelError, SettingsError

KEY = "sk-Very9Secret8Key7Of6Lace"
WORDS = (
    "what does the image describe in detail is shown ? . a photo of lace white net leaf edge round ground question "
    "answer user assistant : , with paragraph"
).split()
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<image>")
TEMPLATE = (
    "USER: {% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
)


# ---- tiny models


def tokenizer(start=None, **names):
    """A tokenizer of whole words, with `start` before every text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    if start:
        words.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, numbers[start])]
        )
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **ends, **names)


def saved(folder, network, processor):
    """Write a model folder; its weights are large enough that every picture is told from the others."""
    import torch

    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=chance) * 0.5)
    assert sum(weight.numel() for weight in network.parameters()) < 25_000
    processor.save_pretrained(folder)
    network.save_pretrained(folder)
    return folder


def sizes(width):
    """The sizes of a small transformer by the names that most configs have."""
    return {
        "hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 128, "vocab_size": len({*SPECIAL, *WORDS}),
    }  # fmt: skip


def tiny_florence(folder):
    """Two stages of its vision tower (16 cells of a picture of 32 px, and one for the whole), a BART of one layer."""
    from transformers import (
        CLIPImageProcessorPil,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    of_both = {f"{half}_{name}": 16 if "dim" in name else 1 + ("heads" in name) for half in ("encoder", "decoder")
               for name in ("layers", "attention_heads", "ffn_dim")}  # fmt: skip
    text = {"model_type": "bart", "vocab_size": len({*SPECIAL, *WORDS}), "d_model": 16, "max_position_embeddings": 128}
    text |= of_both | {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    vision = {
        "depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1),
        "patch_prenorm": (False, True), "embed_dim": (8, 16), "num_heads": (2, 2), "num_groups": (2, 2),
        "window_size": 4, "projection_dim": 16,
    }  # fmt: skip
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=SPECIAL.index("<image>"))
    pictures = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False, image_seq_length=17)
    words = tokenizer(extra_special_tokens={"image_token": "<image>"})
    return saved(folder, Florence2ForConditionalGeneration(config), Florence2Processor(pictures, words))


def tiny_blip2(folder):
    """Four cells of a picture of 28 px, three queries, an OPT of one layer."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessorPil

    config = Blip2Config(
        vision_config=sizes(8) | {"image_size": 28, "patch_size": 14, "initializer_range": 0.02},
        qformer_config=sizes(8),
        text_config=sizes(8)
        | {"model_type": "opt", "ffn_dim": 8, "word_embed_proj_dim": 8, "bos_token_id": 2, "pad_token_id": 1},
        num_query_tokens=3,
        image_token_index=SPECIAL.index("<image>"),
        image_text_hidden_size=8,
    )
    pictures = BlipImageProcessorPil(size={"height": 28, "width": 28})
    processor = Blip2Processor(pictures, tokenizer(start="</s>"), num_query_tokens=3)
    return saved(folder, Blip2ForConditionalGeneration(config), processor)


def tiny_llava(folder, template=TEMPLATE):
    """Four cells of a picture of 28 px by a CLIP of two layers, a Llama of one layer."""
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    config = LlavaConfig(
        vision_config=sizes(8)
        | {"model_type": "clip_vision_model", "num_hidden_layers": 2, "image_size": 28, "patch_size": 14},
        text_config=sizes(8) | {"model_type": "llama", "num_key_value_heads": 2, "pad_token_id": 1, "bos_token_id": 0},
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=4,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer(start="<s>", extra_special_tokens={"image_token": "<image>"}),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return saved(folder, LlavaForConditionalGeneration(config), processor)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for each kind of model."""
    import torch

    from lace_lora.families.quiet import quiet

    parent = tmp_path_factory.mktemp("captioners")
    torch.manual_seed(0)  # vectors, which `saved` leaves as they are made
    with quiet():
        built = {build.__name__: build(parent / build.__name__) for build in (tiny_florence, tiny_blip2, tiny_llava)}
        built["without a template"] = tiny_llava(parent / "no_template", template=None)
    gc.freeze()
    return built


@pytest.fixture(scope="module")
def noise():
    """A picture that has something in every corner."""
    return Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=numpy.uint8))


def by_hand(folder, text, picture, beams):
    """The caption by transformers' own classes, word for word as the models' documentation has it."""
    from lace_lora.families.quiet import quiet

    with quiet():
        import torch
        import transformers

        processor = transformers.AutoProcessor.from_pretrained(folder)
        network = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
        inputs = processor(images=picture, text=text, return_tensors="pt")
        with torch.no_grad():
            tokens = network.generate(**inputs, max_new_tokens=12, do_sample=False, num_beams=beams)
        start = 0 if network.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        return processor.tokenizer.decode(tokens[0, start:], skip_special_tokens=True)


@pytest.mark.parametrize(
    "model, prompt, text, beams",
    [
        ("tiny_florence", None, "<DETAILED_CAPTION>", 3),
        ("tiny_florence", "<CAPTION>", "<CAPTION>", 3),
        ("tiny_blip2", None, "", 3),
        ("tiny_blip2", "a photo of", "a photo of", 3),
        ("tiny_blip2", "what is shown?", "Question: what is shown? Answer:", 3),
        ("tiny_llava", None, f"USER: <image>\n{captioner_http.QUESTION} ASSISTANT:", 1),
        ("tiny_llava", "what is shown?", "USER: <image>\nwhat is shown? ASSISTANT:", 1),
        ("without a template", "what is shown?", "USER: <image>\nwhat is shown? ASSISTANT:", 1),
    ],
)
def test_each_kind_of_model_is_asked_in_its_own_form_and_only_new_words_come_back(
    models, noise, model, prompt, text, beams
):
    """C4: Florence-2, BLIP-2 and LLaVA, as transformers itself runs them."""
    caption = captioners.local(str(models[model]), prompt=prompt, max_new_tokens=12)
    assert caption(noise) == by_hand(models[model], text, noise, beams) != ""
    assert caption(noise) == caption(noise.copy())
    others = [Image.new("RGB", noise.size, colour) for colour in ("white", "black", "red", "green", "blue", "yellow")]
    assert any(caption(noise) != caption(other) for other in others), "random weights hear much of the words"


@pytest.mark.parametrize("model", ["tiny_florence", "tiny_blip2", "tiny_llava"])
def test_half_precision_runs_too(models, noise, model):
    """C4: as on a T4, whose weights are fp16 (here bf16, which every CPU can)."""
    assert captioners.local(str(models[model]), dtype="bf16", max_new_tokens=5)(noise)


def test_older_blip2_folders_that_do_not_say_how_many_queries_there_are_still_look_at_the_picture(
    models, noise, tmp_path
):
    """C4: such a processor writes no places for the picture, and transformers would answer from the words alone."""
    folder = copied(models["tiny_blip2"], tmp_path / "old")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["num_query_tokens"] = None
    (folder / "processor_config.json").write_text(json.dumps(settings))
    older, newer = (
        captioners.local(str(one), prompt="a photo of", max_new_tokens=9) for one in (folder, models["tiny_blip2"])
    )
    assert older(noise) == newer(noise)


def test_weights_of_another_class_are_refused_instead_of_filled_with_random_numbers(models, tmp_path):
    """C4: Microsoft's own Florence-2 repositories say florence2 too, with other names inside."""
    from safetensors.torch import load_file, save_file

    folder = copied(models["tiny_florence"], tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("model.vision_tower.blocks", "vision_tower.blocks.x"): one for name, one in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks \d+ weights .* made for another class. Choose florence-community/"):
        captioners.local(str(folder))


def test_code_in_a_models_folder_is_never_run(models, tmp_path):
    """C4: no trust_remote_code, whatever a config asks for."""
    folder = copied(models["tiny_llava"], tmp_path / "remote")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass A: pass\n")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        autos = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer")
        config["auto_map"] = {auto: "evil.A" for auto in autos}
        (folder / name).write_text(json.dumps(config))
    captioners.local(str(folder), max_new_tokens=2)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "unheard_of"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="could not be loaded"):
        captioners.local(str(folder))
    assert not (tmp_path / "ran").exists()


def copied(folder, to):
    """A copy of a model's folder to spoil."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors missing."),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"model.safetensors missing. Its .bin files are not read, because such files can run code",
        ),
        (lambda folder: (folder / "config.json").unlink(), "config.json missing"),
        (lambda folder: (folder / "config.json").write_text("{}"), "names no model_type"),
        (lambda folder: (folder / "processor_config.json").unlink(), "preprocessor_config.json missing"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "could not be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "could not be loaded"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1"}}'),
            "part-1 missing",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("["),
            "a readable model.safetensors.index",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "qwen3_vl"}'),
            "needs torchvision, which is not installed here",
        ),
    ],
)
def test_a_damaged_model_has_a_sentence(models, tmp_path, monkeypatch, spoil, sentence):
    """C4: what is missing, and what to do."""
    monkeypatch.setattr(captioners, "find_spec", lambda name: None)
    folder = copied(models["tiny_florence"], tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(ModelError, match=sentence):
        captioners.local(str(folder))


@pytest.mark.parametrize(
    "model, sentence",
    [
        ("./nowhere", "No model folder ./nowhere. Give an existing folder"),
        ("Salesforce/blip2-opt-2.7b", "HF_HUB_OFFLINE=1 forbids fetching it. Fetch it on a machine with a network: "
         "hf download Salesforce/blip2-opt-2.7b --include"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_here_has_the_command_that_fetches_it(model, sentence):
    """C4, as for base models."""
    with pytest.raises(ModelError) as caught:
        captioners.local(model)
    assert sentence in str(caught.value) and captioners.fetch_notice(model) == []


def test_fetching_is_announced_with_its_size_and_takes_no_weights_twice(monkeypatch, models, tmp_path):
    """C4: safetensors of the index alone, nothing from sub-folders, no .bin, no code."""
    import huggingface_hub

    small = ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors.index.json"]
    pieces = ["a-1.safetensors", "a-2.safetensors"]
    files = [*small, *pieces, "README.md", "evil.py", "pytorch_model.bin", "b-1.safetensors", "onnx/x.json"]
    index = tmp_path / "index.json"
    index.write_text(
        json.dumps({"weight_map": {"x": "a-1.safetensors", "y": "a-2.safetensors", "z": "a-1.safetensors"}})
    )
    asked, said = [], []

    def snapshot(name, local_files_only=False, allow_patterns=None):
        if local_files_only:
            raise ValueError("not here")
        asked.extend(allow_patterns)
        return str(models["tiny_florence"])

    class Api:
        def model_info(self, name):
            return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=file) for file in files])

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(index))
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    captioners.make("florence2", say=said.append)
    assert said == [
        "captioner fetching florence-community/Florence-2-base (about 1 GB, once; minutes in which nothing seems to "
        "happen) …"
    ]
    assert sorted(asked) == sorted(small + pieces)


def test_memory_that_runs_out_has_a_sentence(models, noise, monkeypatch):
    """C4: what to try next."""
    from transformers import LlavaForConditionalGeneration

    def too_much(*args, **kwargs):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    caption = captioners.local(str(models["tiny_llava"]))
    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", too_much)
    with pytest.raises(MachineError, match="Memory ran out: .* Next to try: captioner florence2, the smallest"):
        caption(noise)


def test_florence_takes_only_its_own_tasks(models):
    """C4."""
    with pytest.raises(SettingsError, match="Florence-2 takes no questions; caption_prompt must be empty or <CAPTION>"):
        captioners.local(str(models["tiny_florence"]), prompt="what is shown?")


# ---- a server


class Server(http.server.ThreadingHTTPServer):
    """A server that gives its replies in turn, the last one for ever, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Asked)
        self.replies, self.requests = itertools.repeat((200, b"{}", {})), []
        self.released = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def will(self, *replies):
        """Each reply is a status, a body (bytes, or a value for JSON) and maybe headers; or a word for bad manners."""
        self.requests.clear()
        self.replies = itertools.chain(replies[:-1], itertools.repeat(replies[-1]))


class Asked(http.server.BaseHTTPRequestHandler):
    """One request to the server above."""

    server: Server

    def do_POST(self):
        """Reply as the script says."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        reply = next(self.server.replies)
        if reply == "hang up":
            return self.connection.close()
        if reply == "garbage":
            return self.wfile.write(b"\x00\xff no HTTP at all\r\n\r\n")
        if reply == "silence":
            return self.server.released.wait(20)
        if reply == "drip":
            return self.drip()
        status, content, *headers = reply
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in dict(*headers).items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(content)
        except OSError:  # the other side has had enough
            pass

    do_GET = do_POST

    def drip(self):
        """A byte every little while, without end."""
        self.send_response(200)
        self.end_headers()
        while not self.server.released.wait(0.05):
            try:
                self.wfile.write(b" ")
            except OSError:
                return

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def server():
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.released.set()
    running.shutdown()
    thread.join()
    running.server_close()


def chat(content):
    """An answer in OpenAI's form."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}


class Pauses(list):
    """Notes how long would have been slept."""

    def __call__(self, seconds):
        self.append(seconds)


@pytest.fixture
def pauses():
    return Pauses()


def test_a_chat_server_gets_the_question_and_a_small_jpeg(server):
    """C4: OpenAI's chat with a picture as a data URL, as LLaVA servers take it."""
    server.will(chat("A veil."))
    caption = captioners.http_chat(server.address, "llava-1.5", key=KEY, prompt="What lace is this?")
    assert caption(Image.new("RGB", (3000, 2000), (200, 10, 10))) == "A veil."
    (path, headers, body), *others = server.requests
    asked = json.loads(body)
    text, picture = asked["messages"][0]["content"]
    start, _, data = picture["image_url"]["url"].partition(",")
    sent = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert not others and path == "/v1/chat/completions" and headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == f"Bearer {KEY}" and asked["model"] == "llava-1.5"
    assert text == {"type": "text", "text": "What lace is this?"} and picture["type"] == "image_url"
    assert start == "data:image/jpeg;base64" and sent.format == "JPEG" and sent.size == (1024, 683)
    assert numpy.abs(numpy.asarray(sent, int) - (200, 10, 10)).max() < 8


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/v1/chat/completions?x=1", "/?x=1"])
def test_the_address_may_end_anywhere_in_the_protocols_path(server, end):
    """C4."""
    server.will(chat("A veil."))
    assert captioners.http_chat(server.address + end)(Image.new("RGB", (9, 9))) == "A veil."
    assert (
        server.requests[0][0].partition("?")[0] == "/v1/chat/completions"
        and "Authorization" not in server.requests[0][1]
    )
    assert server.requests[0][0].partition("?")[2] == end.partition("?")[2]


def test_answers_in_parts_are_put_together(server):
    """C4: some servers answer a list of parts."""
    server.will(chat([{"type": "text", "text": "A "}, {"type": "image"}, {"type": "text", "text": "veil."}]))
    assert captioners.http_chat(server.address)(Image.new("RGB", (9, 9))) == "A veil."


@pytest.mark.parametrize(
    "answer",
    [[{"generated_text": "A veil."}], {"generated_text": "A veil."}, {"caption": "A veil."}, {"text": "A veil."}],
)
def test_a_plain_endpoint_gets_the_bytes_of_a_jpeg(server, answer):
    """C4: Hugging Face's image-to-text, and small services of one's own."""
    server.will((200, answer))
    assert (
        captioners.http_plain(f"{server.address}/models/blip?wait=1", key=SecretStr(KEY))(Image.new("L", (9, 9)))
        == "A veil."
    )
    path, headers, body = server.requests[0]
    assert path == "/models/blip?wait=1" and headers["Content-Type"] == "image/jpeg"
    assert headers["Authorization"] == f"Bearer {KEY}" and Image.open(io.BytesIO(body)).format == "JPEG"


@pytest.mark.parametrize("first", [(500, b"oh"), (503, {"error": "loading"}), (429, b""), "hang up", "garbage"])
def test_what_may_pass_is_tried_again_with_growing_pauses(server, pauses, first):
    """C4: 500, 503, 429 and a connection that breaks."""
    server.will(first, first, first, chat("A veil."))
    assert captioners.http_chat(server.address, wait=pauses)(Image.new("RGB", (9, 9))) == "A veil."
    assert pauses == [1, 2, 4] and len(server.requests) == 4


@pytest.mark.parametrize(
    "asked, waited", [("7", 7), ("100000", 60), ("-5", 1), ("Wed, 21 Oct 2026 07:28:00 GMT", 1), ("²", 1)]
)
def test_a_server_may_say_how_long_to_wait_within_reason(server, pauses, asked, waited):
    """C4."""
    server.will((429, b"", {"Retry-After": asked.encode("latin-1").decode("latin-1")}), chat("A veil."))
    captioners.http_chat(server.address, wait=pauses)(Image.new("RGB", (9, 9)))
    assert pauses == [waited]


@pytest.mark.parametrize(
    "reply, tries, kind, sentence",
    [
        ((500, {"error": {"message": "no GPU\nleft"}}), 4, ModelError, "failed (500: no GPU left), also after 4 tries"),
        ((429, b"quota"), 4, ModelError, "is busy, or your quota there is used up (429: quota), also after 4 tries"),
        ("hang up", 4, ModelError, "Start the server, or correct caption_url."),
        ("garbage", 4, ModelError, "Start the server, or correct caption_url."),
        ("silence", 1, ModelError, "no answer within 0.3 s"),
        ("drip", 1, ModelError, "no answer within 0.3 s"),
        ((401, b"no"), 1, SettingsError, "refuses the key (401). Put a valid one into the environment variable"),
        ((403, b"no"), 1, SettingsError, "refuses the key (403)"),
        ((404, {"error": "no m"}), 1, SettingsError, "has nothing there, or knows no model llava (404: no m). Corr"),
        ((405, b""), 1, SettingsError, "has nothing there, or knows no model llava (405)."),
        ((400, {"detail": [1]}), 1, ModelError, "does not take this request (400: [1]). Correct captioner"),
        ((307, b"", {"Location": "http://x.test/y?token=1"}), 1, SettingsError, "sends on to http://x.test/y (307)."),
        ((302, b""), 1, SettingsError, "sends on to another address (302)"),
        ((200, b"<html>Welcome"), 1, ModelError, "gave an answer that is no caption: <html>Welcome. Is it a"),
        ((200, b""), 1, ModelError, "gave an answer that is no caption: nothing."),
        ((200, b"\xff\xfe\x00"), 1, ModelError, "that is no caption"),
        ((200, b"[" * 100_000), 1, ModelError, "that is no caption"),
        ((200, {"choices": []}), 1, ModelError, 'that is no caption: {"choices": []}'),
        ((200, {"choices": [{"message": {"content": None}}]}), 1, ModelError, "that is no caption"),
        ((200, {"error": {"message": "out of\x1b[31m credit"}}), 1, ModelError, "no caption: out of\\x1b[31m credit"),
        ((200, b"x" * 3_000_000), 1, ModelError, "its answer is larger than 1 MB"),
        ((204, b""), 1, ModelError, "does not take this request (204)"),
    ],
)  # fmt: skip
def test_each_bad_reply_has_its_sentence(server, pauses, reply, tries, kind, sentence):
    """C4: what the server did, and what to do; never a word of the key."""
    server.will(reply)
    patience = 0.3 if reply in ("silence", "drip") else 60
    caption = captioners.http_chat(server.address, "llava", key=KEY, timeout_seconds=patience, wait=pauses)
    with pytest.raises(kind) as caught:
        caption(Image.new("RGB", (9, 9)))
    assert sentence in str(caught.value) and str(caught.value).startswith(f"{server.address}/v1/chat/completions ")
    assert len(server.requests) == tries and str(caught.value).isprintable()


def test_a_redirection_is_not_followed_and_takes_no_key_along(server):
    """C4: urllib by itself would ask the other address, with the key in its header."""
    server.will((302, b"", {"Location": f"{server.address}/other"}), chat("A veil."))
    with pytest.raises(SettingsError, match="/other .302.. Write the right address into caption_url"):
        captioners.http_chat(server.address, key=KEY)(Image.new("RGB", (9, 9)))
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_has_a_sentence(server, pauses):
    """C4: nothing listens at that port."""
    caption = captioners.http_chat("http://127.0.0.1:9", wait=pauses)
    with pytest.raises(ModelError, match="127.0.0.1:9/v1/chat/completions cannot be asked: Connection refused. Start"):
        caption(Image.new("RGB", (9, 9)))
    assert pauses == [1, 2, 4]


def test_a_server_that_asks_for_a_key_says_so(server):
    """C4."""
    server.will((401, b""))
    with pytest.raises(SettingsError, match=r"asks for a key \(401\). Put a valid one into the environment variable"):
        captioners.http_plain(server.address)(Image.new("RGB", (9, 9)))


def test_a_proxy_of_the_environment_is_not_asked_for_this_machines_own_server(server, monkeypatch):
    """C4: on Colab and in offices such a variable is often set."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    server.will(chat("A veil."))
    assert captioners.http_chat(server.address)(Image.new("RGB", (9, 9))) == "A veil."


@pytest.mark.parametrize(
    "url, sentence",
    [
        ("localhost:8000", "is no address of a server. Write for example http://localhost:8000."),
        ("", "is no address of a server. Write for example http://localhost:8000"),
        ("file:///etc/passwd", "is no address of a server"),
        ("http://", "is no address of a server"),
        ("http://a:port/", "is no address"),
        ("http://[::1", "is no address"),
        ("http://lace .test", "holds signs that no address has"),
        ("http://spitze.test/ü", "holds signs that no address has"),
        ("http://anna:geheim@lace.test/", "holds a user name or password"),
        ("https://lace.test/v1?api_key=sk-geheim", "holds api_key behind its question mark"),
        ("lace.test/x?token=sk-geheim", "holds token behind its question mark"),
    ],
)
def test_addresses_that_are_none_are_refused_at_once(url, sentence):
    """C4."""
    for make in (captioners.http_chat, captioners.http_plain):
        with pytest.raises(SettingsError) as caught:
            make(url)
        assert sentence in str(caught.value) and "geheim" not in str(caught.value) and "geheim" not in str(caught.value)


def test_a_host_that_cannot_be_one_has_a_sentence(pauses):
    """C4: urllib raises UnicodeError for it."""
    with pytest.raises(ModelError, match=r"http://a\.\.b/ cannot be asked"):
        captioners.http_plain("http://a..b/", wait=pauses)(Image.new("RGB", (9, 9)))


# ---- the key


@pytest.mark.parametrize(
    "reply",
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}."}}),
        (403, f"Bearer {KEY}".encode()),
        (500, f'{{"headers": "Bearer {KEY}"}}'.encode()),
        (400, {"error": f"{KEY[:12]}… is wrong"}),
        (404, {"error": KEY[4:16]}),
        (307, b"", {"Location": f"http://x.test/{KEY}?key={KEY}"}),
        (200, f"<html>{KEY}".encode()),
        (200, {"choices": [{"message": {"content": f"A veil, said {KEY}"}}]}),
        (200, {"choices": [{"message": {"content": f"A veil, said {KEY[2:14]}"}}]}),
        "hang up",
        "garbage",
    ],
)
def test_the_key_is_in_no_exception_log_or_caption(server, pauses, reply, caplog, capfd):
    """C4: not in the message, nor in the chain of errors, nor in the values of their frames of ours."""
    server.will(reply)
    caption = captioners.http_chat(server.address, "llava", key=KEY, wait=pauses)
    with caplog.at_level(logging.DEBUG), pytest.raises(LaceError) as caught:
        caption(Image.new("RGB", (9, 9)))
    error = caught.value
    assert error.__cause__ is None and error.__context__ is None
    told = "".join(traceback.format_exception(error)) + repr(error) + caplog.text + "".join(capfd.readouterr())
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if "lace_lora" in frame.f_code.co_filename]
    told += "".join(repr(value) for frame in frames for value in frame.f_locals.values())
    assert frames and not [part for part in (KEY[at : at + 8] for at in range(len(KEY) - 7)) if part in told]
    assert f"Bearer {KEY}" == server.requests[0][1]["Authorization"]
    assert KEY not in repr(caption) and KEY not in repr([cell.cell_contents for cell in caption.__closure__])


@pytest.mark.parametrize("key", ["EMPTY", "lace"])
def test_the_dummy_keys_of_local_servers_may_be_words_of_a_caption(server, key):
    """C4: servers without a key are often given the word EMPTY."""
    server.will(chat(f"{key} veil"))
    assert captioners.http_chat(server.address, key=key)(Image.new("RGB", (9, 9))) == f"{key} veil"


@pytest.mark.parametrize("key", ["a b", "a\nb", "schlüssel", "\x00"])
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(key):
    """C4: http.client would show it in its own error."""
    with pytest.raises(SettingsError, match="The key in LACE_CAPTION_KEY holds a space") as caught:
        captioners.http_chat(key=key)
    assert key not in str(caught.value)


def test_a_key_never_travels_unencrypted_beyond_the_own_network():
    """C4."""
    with pytest.raises(SettingsError, match="could read your key. Write https://lace.test, or unset LACE_CAPTION_KEY"):
        captioners.http_chat("http://lace.test", key=KEY)
    for near in (
        "http://192.168.1.5:8000",
        "http://gpu:8000",
        "http://box.local",
        "http://[::1]:80",
        "https://lace.test",
    ):
        captioners.http_chat(near, key=KEY)
    captioners.http_chat("http://lace.test")


def test_the_key_comes_from_the_environment_or_from_colabs_secrets_and_from_nowhere_else(monkeypatch):
    """C4: and says what to click where Colab withholds it."""
    monkeypatch.delenv("LACE_CAPTION_KEY", raising=False)
    assert captioners.find_key() is None
    google, package, userdata = (types.ModuleType(name) for name in ("google", "google.colab", "google.colab.userdata"))
    package.userdata, google.colab = userdata, package
    package.__spec__ = ModuleSpec("google.colab", None)
    for module in (google, package, userdata):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(captioners.colab, "somebody_is_here", lambda: True)
    userdata.get = {"LACE_CAPTION_KEY": f" {KEY}\n"}.get
    found = captioners.find_key()
    assert found == SecretStr(KEY) and KEY not in repr(found)

    def refusing(kind):
        def get(name):
            raise type(kind, (Exception,), {})(f"Notebook does not have access to secret {name}")

        return get

    userdata.get = refusing("SecretNotFoundError")
    assert captioners.find_key() is None
    userdata.get = refusing("NotebookAccessError")
    with pytest.raises(SettingsError, match="has the secret LACE_CAPTION_KEY, .* switch on “Notebook access”"):
        captioners.find_key()
    monkeypatch.setenv("LACE_CAPTION_KEY", f"{KEY}\n")
    assert captioners.find_key() == SecretStr(KEY)


# ---- choosing


def test_a_captioner_is_chosen_by_setting(server, models, noise, monkeypatch):
    """C4: local, chat, plain or none."""
    monkeypatch.setenv("LACE_CAPTION_KEY", KEY)
    assert captioners.make("none") is None
    server.will(chat("A veil."))
    assert captioners.make("http_chat", url=server.address, model="m", prompt="What?")(noise) == "A veil."
    assert json.loads(server.requests[0][2])["messages"][0]["content"][0]["text"] == "What?"
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    server.will((200, {"caption": "An edge."}))
    assert captioners.make("http_plain", url=server.address)(noise) == "An edge."
    for provider, model in (("florence2", "tiny_florence"), ("blip2", "tiny_blip2"), ("llava", "tiny_llava")):
        assert captioners.make(provider, model=str(models[model]))(noise)


@pytest.mark.parametrize(
    "provider, more, sentence",
    [
        ("florence", {}, "no captioner called 'florence'; did you mean florence2"),
        ("http_plain", {}, "http_plain needs caption_url"),
        ("http_plain", {"url": "http://localhost", "prompt": "What?"}, "sends no question: leave caption_prompt empty"),
    ],
)
def test_settings_that_do_not_fit_are_refused(provider, more, sentence):
    """C4."""
    with pytest.raises(SettingsError, match=sentence):
        captioners.make(provider, **more)


@pytest.mark.parametrize("provider, model", captioners.LOCAL_MODELS.items())
def test_each_local_provider_names_the_model_that_it_would_fetch(provider, model):
    """C4: nothing is fetched under HF_HUB_OFFLINE."""
    with pytest.raises(ModelError, match=f"^{model} is not on this machine and HF_HUB_OFFLINE=1"):
        captioners.make(provider)


# ---- pictures


MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "RGBX",
    "RGBa",
    "La",
    "I;16",
)


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_can_be_sent(mode):
    """C4: a captioner takes what people open with Pillow."""
    picture = Image.new(mode, (64, 48))
    sent = Image.open(io.BytesIO(captioner_http.jpeg(picture)))
    assert sent.mode == "RGB" and sent.size == (64, 48) and picture.mode == mode


def test_transparency_becomes_white_and_deep_greys_keep_their_shades():
    """C4: a hidden colour must not come to light, nor 16 bits become plain white."""
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert image_files.as_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    marked = Image.new("RGB", (8, 8), (1, 2, 3))
    marked.info["transparency"] = (1, 2, 3)
    assert image_files.as_rgb(marked).getpixel((0, 0)) == (255, 255, 255)
    ramp = numpy.linspace(0, 65535, 256).astype(numpy.uint16)[None].repeat(8, axis=0)
    shades = numpy.asarray(image_files.as_rgb(Image.fromarray(ramp)))[0, :, 0].astype(int)
    assert numpy.abs(shades - numpy.arange(256)).max() <= 1


def test_no_metadata_leaves_the_machine():
    """C4: place and camera of a photograph are nobody's business."""
    exif = Image.Exif()
    exif[0x010F] = "Secret camera"
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", exif=exif, comment=b"Secret place", icc_profile=b"Secret profile")
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "Secret note")
    other = io.BytesIO()
    Image.new("RGB", (64, 64)).save(other, "PNG", pnginfo=notes)
    for one in (file, other):
        with Image.open(io.BytesIO(one.getvalue())) as picture:
            assert b"Secret" in one.getvalue() and b"Secret" not in captioner_http.jpeg(picture)


def test_the_picture_handed_in_is_not_changed(noise):
    """C4."""
    picture = noise.resize((2000, 1500))
    picture.info["comment"] = b"mine"
    before = picture.tobytes()
    captioner_http.jpeg(picture)
    assert picture.tobytes() == before and picture.info == {"comment": b"mine"} and picture.size == (2000, 1500)


def test_importing_the_room_loads_no_torch():
    """P28: a server's captions need none."""
    import subprocess

    code = "import sys, lace_lora.captioners, lace_lora.suggest; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
