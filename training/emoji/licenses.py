"""The text of `assets/emoji/LICENSES.md`: who drew each style, under which licence, and from which package it came."""

_ART = (
    # style, title, author, source, licence, licence text, what is said beside it
    ("noto", "Noto Emoji", "Google LLC", "https://github.com/googlefonts/noto-emoji", "Apache-2.0",
     "https://www.apache.org/licenses/LICENSE-2.0", "Copyright Google LLC."),
    ("twemoji", "Twemoji", "Twitter, Inc. and other contributors; maintained by jdecked",
     "https://github.com/jdecked/twemoji", "CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/",
     "Copyright Twitter, Inc. and other contributors. Graphics licensed under CC-BY 4.0."),
    ("fluent_flat", "Fluent Emoji (flat)", "Microsoft Corporation",
     "https://github.com/microsoft/fluentui-emoji", "MIT",
     "https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE", "Copyright (c) Microsoft Corporation."),
    ("fluent_3d", "Fluent Emoji (3D)", "Microsoft Corporation; packaged by LobeHub",
     "https://github.com/microsoft/fluentui-emoji", "MIT",
     "https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE",
     "Copyright (c) Microsoft Corporation. Packaging copyright (c) 2023 LobeHub, MIT."),
    ("openmoji", "OpenMoji", "OpenMoji, the open-source emoji project of HfG Schwaebisch Gmuend",
     "https://github.com/hfg-gmuend/openmoji", "CC-BY-SA-4.0", "https://creativecommons.org/licenses/by-sa/4.0/",
     "All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0."),
)  # fmt: skip

_CHANGES = """Each sheet keeps the licence of its art. Changes made to all of them: rendered or scaled to 64x64 pixels
and put together on one sheet (`training/emoji/pack.py`). `openmoji.webp` is thus an adaptation that stays under
CC-BY-SA-4.0; it is a file of its own and nothing else is made of it."""

_MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def licenses_text(packages: dict[str, str]) -> str:
    """Markdown with one section a style and one for the texts.

    Args:
        packages: style -> npm package with version; key `emojibase` for the texts.
    """
    parts = [
        "# Licences of the emoji sheets",
        _CHANGES,
    ]
    for style, title, author, source, licence, url, notice in _ART:
        parts.append(
            f"## {style}.webp\n\n- title: {title}\n- author: {author}\n- source: {source}\n- package: npm "
            f"`{packages[style]}`\n- licence: {licence} ({url})\n- notice: {notice}"
        )
    parts.append(
        "## emoji.json\n\nLabels, tags, groups and subgroups: emojibase-data by Miles Johnson "
        f"(https://github.com/milesj/emojibase), npm `{packages['emojibase']}`, MIT, Copyright (c) 2017-2019 Miles "
        "Johnson. Everything else in the file: this project, Apache-2.0."
    )
    parts.append("## Text of the MIT licence (fluent_flat, fluent_3d, emoji.json)\n\n" + _MIT)
    return "\n\n".join(parts) + "\n"
