"""Command lines: words that are missing, unknown, of the wrong kind or out of range, and places that cannot be written."""

import numpy as np
from PIL import Image

from strangers.case import Case, Group, Place, run_command
from strangers.images import noise, saved
from strangers.materials import checkpoint, codes_of, good_codes


LONG = "frog_" * 200 + "frog"
HALF = "\ud83d"  # of a surrogate pair


def prepare(place: Place) -> None:
    """A model, a tokenizer, a picture and a file of codes, under those names."""
    checkpoint("model")(place)
    checkpoint("tokenizer")(place)
    Image.fromarray(np.full((8, 8, 3), 77, dtype=np.uint8)).save(place.path / "a.png")
    codes_of(place, good_codes(), ["a.png"])


def cut_tiff(place: Place) -> None:
    """An image that Pillow remarks on before it gives up."""
    content = saved(noise(), "TIFF")
    place.write("cut.tif", content[: len(content) // 2])


def case(line: str, gets: str, good=None, lay=None) -> Case:
    """A command line; `_` stands for a space in a word."""

    def make(place: Place) -> list[str]:
        prepare(place)
        if lay is not None:
            lay(place)
        return [word.replace("_", " ") for word in line.split()]

    name = line.replace(LONG, "A_TEXT_OF_201_WORDS").replace(HALF, "HALF_A_CHARACTER").replace("x" * 300, "300_LETTERS")
    name = name.replace("\x1b", "ESC")
    return Case(f"`evotok {name}`".replace("_", " "), gets, make, good)


CASES = [
    case("paint", "evotok: No such command 'paint'. Did you mean 'plan', 'train'? (see evotok --help)"),
    case("mesure", "evotok: No such command 'mesure'. Did you mean 'measure'? (see evotok --help)"),
    case("chat --promt hello", "evotok chat: No such option: --promt. Did you mean --prompt? (see evotok chat --help)"),
    case("chat modle --prompt hello", "evotok chat: 'modle': no such folder. Did you mean 'model'?"),
    case("chat mni --prompt hello", "evotok chat: 'mni': no such folder. Did you mean 'mini'?"),
    case(
        "generate model --prompt --out out",
        "evotok generate: Option '--prompt' requires an argument (see evotok generate --help)",
    ),
    case("--nonsense", "evotok: No such option: --nonsense (see evotok --help)"),
    case("chat", "evotok chat: give either a CHECKPOINT, such as mini, or the --server of a model that runs."),
    case(
        "chat --server http://127.0.0.1:9",
        "evotok chat: http://127.0.0.1:9: no server answers (Connection refused): start one with `evotok serve`, or give another --server.",
    ),
    case(
        "chat --server file:///etc/passwd",
        "evotok chat: 'file:///etc/passwd' is no address of a server: give one such as http://127.0.0.1:8000.",
    ),
    case("chat model --image missing.png --prompt hello", "evotok chat: 'missing.png': no such file: check the path."),
    case(
        "chat model --image tokenizer --prompt hello",
        "evotok chat: 'tokenizer': not a file: give the path of an image.",
    ),
    case(
        "chat model --prompt hello --max-new-tokens 0",
        "evotok chat: Invalid value for '--max-new-tokens': Input should be greater than or equal to 1 (see evotok chat --help)",
    ),
    case(
        "chat model --prompt hello --max-new-tokens many",
        "evotok chat: Invalid value for '--max-new-tokens': Input should be a valid integer, unable to parse string as an integer (see evotok chat --help)",
    ),
    case(
        "chat model --prompt " + LONG,
        "evotok chat: The conversation has 610 tokens, the model reads fewer than 128: shorten the question, show fewer images, or begin anew.",
    ),
    case(
        "chat model --prompt hello --image a.png" + " --image a.png" * 9,
        "evotok chat: The conversation has 193 tokens, the model reads fewer than 128: shorten the question, show fewer images, or begin anew.",
    ),
    case(
        "chat model --prompt " + HALF,
        "evotok chat: Text holds half of a surrogate pair, which is no character: remove it.",
    ),
    case(
        "chat tokenizer --prompt hello",
        "evotok chat: tokenizer: an image tokenizer alone, which can only encode and decode. Give a full checkpoint, such as mini.",
    ),
    case(
        "chat model more --prompt hello",
        "evotok chat: Got unexpected extra argument(s) (more) (see evotok chat --help)",
    ),
    case(
        "generate",
        "evotok generate: Missing argument 'CHECKPOINT' (see evotok generate --help)",
    ),
    case("generate model", "evotok generate: Missing option '--prompt' (see evotok generate --help)"),
    case(
        "generate model --prompt",
        "evotok generate: Option '--prompt' requires an argument (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --num-images 0",
        "evotok generate: Invalid value for '--num-images': Input should be greater than or equal to 1 (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --num-images 1.5",
        "evotok generate: Invalid value for '--num-images': Input should be a valid integer, unable to parse string as an integer (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --seed x",
        "evotok generate: Invalid value for '--seed': Input should be a valid integer, unable to parse string as an integer (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --seed 999999999999999999999999 --out out",
        "evotok generate: Invalid value for '--seed': Input should be less than or equal to 18446744073709551615 (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --seed -99999999999999999999999 --out out",
        "evotok generate: Invalid value for '--seed': Input should be greater than or equal to 0 (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --guidance-scale strong",
        "evotok generate: Invalid value for '--guidance-scale': Input should be a valid number, unable to parse string as a number (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --guidance-scale -1 --out out",
        "evotok generate: Invalid value for '--guidance-scale': Input should be greater than or equal to 0 (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --guidance-scale nan --out out",
        "evotok generate: Invalid value for '--guidance-scale': Input should be greater than or equal to 0 (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --guidance-scale inf --out out",
        "evotok generate: Invalid value for '--guidance-scale': inf is not a finite number (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --guidance-min-p 1.5 --out out",
        "evotok generate: Invalid value for '--guidance-min-p': Input should be less than or equal to 1 (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --temperature -0.1 --out out",
        "evotok generate: Invalid value for '--temperature': Input should be greater than or equal to 0 (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --temperature inf --out out",
        "evotok generate: Invalid value for '--temperature': inf is not a finite number (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --top-k -3 --out out",
        "evotok generate: Invalid value for '--top-k': Input should be greater than or equal to 0 (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --top-k 2.5 --out out",
        "evotok generate: Invalid value for '--top-k': Input should be a valid integer, unable to parse string as an integer (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --top-p 0 --out out",
        "evotok generate: Invalid value for '--top-p': 0 is too small, give a number above 0 (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --top-p nan --out out",
        "evotok generate: Invalid value for '--top-p': Input should be less than or equal to 1 (see evotok generate --help)",
    ),
    case(
        "generate model --prompt " + LONG + " --out out",
        "evotok generate: input_ids of 611 tokens and an image of 16 positions make 627, but the language model reads at most 128: shorten the prompt by 499 tokens.",
    ),
    case(
        "generate model --prompt " + HALF + " --out out",
        "evotok generate: Text holds half of a surrogate pair, which is no character: remove it.",
    ),
    case("generate model --prompt a --out a.png", "evotok generate: a.png: this is a file, give a folder to write to."),
    case(
        "generate model --prompt a --out a.png/out",
        "evotok generate: a.png: this is a file, give a folder to write to.",
    ),
    case(
        "generate model --prompt a --out ",
        "evotok generate: Option '--out' requires an argument (see evotok generate --help)",
    ),
    case(
        "generate model --prompt a --out " + "x" * 300,
        "evotok generate: …: file name too long: give another folder to write to.",
    ),
    case(
        "encode",
        "evotok encode: Missing argument 'CHECKPOINT' (see evotok encode --help)",
    ),
    case("encode model", "evotok encode: Missing argument 'IMAGE' (see evotok encode --help)"),
    case("encode model a.png", "evotok encode: Missing option '--out' (see evotok encode --help)"),
    case(
        "encode model a.png --out codes",
        "evotok encode: --out codes: the name of a file of codes must end in .safetensors.",
    ),
    case(
        "encode model a.png --out codes.pt",
        "evotok encode: --out codes.pt: the name of a file of codes must end in .safetensors.",
    ),
    case(
        "encode model a.png --out folder.safetensors",
        "evotok encode: folder.safetensors: this is a folder, give the name of a file to write.",
        lay=lambda place: (place.path / "folder.safetensors").mkdir(),
    ),
    case(
        "encode model a.png --out a.png/codes.safetensors",
        "evotok encode: a.png: this is a file, give a folder to write to.",
    ),
    case(
        "encode model a.png missing.png --out new.safetensors",
        "evotok encode: 'missing.png': no such file: check the path.",
    ),
    case(
        "encode model missing-*.png --out new.safetensors",
        "evotok encode: 'missing-*.png': no such file: check the path.",
    ),
    case("encode model model --out new.safetensors", "evotok encode: 'model': not a file: give the path of an image."),
    case(
        "encode model codes.safetensors --out new.safetensors",
        "evotok encode: 'codes.safetensors': not an image: give one of PNG, JPEG, WEBP, GIF, BMP, DIB, TIFF, PPM, ICO, JPEG2000, AVIF, TGA, QOI.",
    ),
    case(
        "decode",
        "evotok decode: Missing argument 'CHECKPOINT' (see evotok decode --help)",
    ),
    case("decode model", "evotok decode: Missing argument 'FILE' (see evotok decode --help)"),
    case(
        "decode model codes.safetensors",
        "evotok decode: Missing option '--out' (see evotok decode --help)",
    ),
    case(
        "decode model missing.safetensors --out out",
        "evotok decode: missing.safetensors: no such file. `evotok encode` writes files of codes.",
    ),
    case(
        "decode model codes.safetensors --depth 0 --out out",
        "evotok decode: --depth 0: these codes have 4 levels, give 1 to 4.",
    ),
    case(
        "decode model codes.safetensors --depth 5 --out out",
        "evotok decode: --depth 5: these codes have 4 levels, give 1 to 4.",
    ),
    case(
        "decode model codes.safetensors --depth -1 --out out",
        "evotok decode: --depth -1: these codes have 4 levels, give 1 to 4.",
    ),
    case(
        "decode model codes.safetensors --depth two --out out",
        "evotok decode: Invalid value for '--depth': Input should be a valid integer, unable to parse string as an integer (see evotok decode --help)",
    ),
    case(
        "decode model codes.safetensors --out a.png", "evotok decode: a.png: this is a file, give a folder to write to."
    ),
    case(
        "decode codes.safetensors model --out out",
        "evotok decode: model: no such file. `evotok encode` writes files of codes.",
    ),
    case(
        "demo --checkpoint missing",
        "evotok demo: 'missing': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
    ),
    case(
        "demo --checkpoint model --out demo --guidance-scale -1",
        "evotok demo: Invalid value for '--guidance-scale': Input should be greater than or equal to 0 (see evotok demo --help)",
    ),
    case(
        "demo --checkpoint tokenizer",
        "evotok demo: tokenizer: an image tokenizer alone, which can only encode and decode. Give a full checkpoint, such as mini.",
    ),
    case("demo --checkpoint model --out a.png", "evotok demo: a.png: this is a file, give a folder to write to."),
    case(
        "demo --seed x",
        "evotok demo: Invalid value for '--seed': Input should be a valid integer, unable to parse string as an integer (see evotok demo --help)",
    ),
    case(
        "demo --guidance-scale x",
        "evotok demo: Invalid value for '--guidance-scale': Input should be a valid number, unable to parse string as a number (see evotok demo --help)",
    ),
    case(
        "train",
        "evotok train: Missing argument 'RECIPE' (see evotok train --help)",
    ),
    case("train missing.yaml", "evotok train: missing.yaml: no such recipe. The shipped ones are in configs/."),
    case("train a.png", "evotok train: a.png: not UTF-8: save the recipe as UTF-8."),
    case(
        "train recipe.yaml words",
        "evotok train: override 'words' is not of the form section.key=value: write it so.",
        lay=lambda place: place.write("recipe.yaml", "stage: gen\n"),
    ),
    case("export", "evotok export: Missing argument 'CHECKPOINT' (see evotok export --help)"),
    case("export model", "evotok export: Missing option '--out' (see evotok export --help)"),
    case(
        "export missing --out out",
        "evotok export: 'missing': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
    ),
    case(
        "export tokenizer --out out",
        "evotok export: tokenizer: an image tokenizer alone, which can only encode and decode. Give a full checkpoint, such as mini.",
    ),
    case("export model --out a.png", "evotok export: a.png: this is a file, give a folder to write to."),
    case("export model --out a.png/out", "evotok export: a.png: this is a file, give a folder to write to."),
    case(
        "export model --out out --dtype int8",
        "evotok export: Invalid value for '--dtype': 'int8' is not one of 'bfloat16', 'float16', 'float32' (see evotok export --help)",
    ),
    case(
        "export model --out out --guidance-min-p 3",
        "evotok export: Invalid value for '--guidance-min-p': Input should be less than or equal to 1 (see evotok export --help)",
    ),
    case(
        "export model --out out --guidance-min-p much",
        "evotok export: Invalid value for '--guidance-min-p': Input should be a valid number, unable to parse string as a number (see evotok export --help)",
    ),
    case(
        "export model --out out --top-k -1",
        "evotok export: Invalid value for '--top-k': Input should be greater than or equal to 0 (see evotok export --help)",
    ),
    case(
        "export model --out out --temperature -1",
        "evotok export: Invalid value for '--temperature': Input should be greater than or equal to 0 (see evotok export --help)",
    ),
    case(
        "measure missing",
        "evotok measure: 'missing': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
    ),
    case(
        "measure tokenizer parts=[questions] --out out",
        "evotok measure: tokenizer: an image tokenizer alone, which can only encode and decode. Give a full checkpoint, such as mini.",
    ),
    case(
        "measure model parts=[questions] --out out",
        "evotok measure: model: images of 32 px, not of 64: give a mini model.",
    ),
    case(
        "measure model prompts=1 --out out",
        "evotok measure: prompts=1 must be at least 2: each needs another one to contradict it.",
    ),
    case(
        "measure model parts=[everything]",
        "evotok measure: parts: unknown 'everything': choose among tokenizer, questions, composition, emoji.",
    ),
    case(
        "measure model teacher=missing",
        "evotok measure: teacher: missing: no such folder: give the folder or hub id of a vision tower.",
    ),
    case(
        "encode model cut.tif --out new.safetensors",
        "evotok encode: 'cut.tif': cannot be read (…): save the image again.",
        lay=cut_tiff,
    ),
    case(
        "encode model \x1b[31mred\x1b[0m --out new.safetensors",
        "evotok encode: '\\x1b[31mred\\x1b[0m': no such file: check the path.",
    ),
    case("\x1b[31mred", "evotok: No such command '\\x1b[31mred' (see evotok --help)"),
    case(
        "decode model \x1b[2J --out out",
        "evotok decode: \\x1b[2J: no such file. `evotok encode` writes files of codes.",
    ),
    case(
        "export-onnx",
        "evotok export-onnx: Missing argument 'CHECKPOINT' (see evotok export-onnx --help)",
    ),
    case(
        "export-onnx missing --out out",
        "evotok export-onnx: 'missing': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
    ),
    case("export-onnx tokenizer --out a.png", "evotok export-onnx: a.png: this is a file, give a folder to write to."),
    case(
        "convert",
        "evotok convert: Missing argument 'SOURCE' (see evotok convert --help)",
    ),
    case(
        "convert tokenizer --out new --depth-heads 0",
        "evotok convert: Invalid value for '--depth-heads': Input should be greater than or equal to 1 (see evotok convert --help)",
    ),
    case(
        "convert tokenizer --out new",
        "evotok convert: tokenizer: a checkpoint of EvoTok already; --to-reference converts it to the release's format.",
    ),
    case(
        "convert tokenizer --out model",
        "evotok convert: model: this is there already, give a folder that is new or empty.",
    ),
    case(
        "convert tokenizer model --to-reference --out new",
        "evotok convert: --to-reference takes one checkpoint of ours, not 2 sources.",
    ),
    case(
        "convert missing --to-reference --out new",
        "evotok convert: 'missing': no such folder. Give a checkpoint: a folder with config.json and *.safetensors.",
    ),
]

GROUPS = [Group("Command lines", "`evotok`", run_command, CASES, refusal="exit 2")]
