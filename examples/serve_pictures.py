"""The pictures of the server's page in the docs, from the embedded demo: docs/images/serve.png, serve-dark.png.

    python examples/serve_pictures.py [FOLDER]

Needs the extra `serve`, Pillow, chromium and node (`npm ci --prefix viewer`).
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PICTURES = (("serve.png", "light", "1500x950"), ("serve-dark.png", "dark", "1000x800"))
GROUP = "Texas"


def main(folder: Path) -> None:
    """Writes the pictures into the folder."""
    with tempfile.TemporaryDirectory() as kept:
        command = [sys.executable, "-c", "from crosstrace.tracer.commands.app import main; main()"]
        command += ["serve", "--port", "0", "--folder", kept]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = re.search(r"http:\S+", server.stdout.readline())
            assert address is not None
            for name, scheme, size in PICTURES:
                script = ROOT / "viewer" / "test" / "serve_screenshot.mjs"
                subprocess.run(["node", script, address[0], folder / name, scheme, size, GROUP], check=True)
                shrink(folder / name)
        finally:
            server.terminate()
            server.wait()


def shrink(picture: Path) -> None:
    """Few colours are in a picture: a palette holds them in a third of the bytes."""
    with Image.open(picture) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(picture, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
