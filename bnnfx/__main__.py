"""`python -m bnnfx` is the command `bnnfx`."""

from bnnfx.cli import app

if __name__ == "__main__":
    app(prog_name="bnnfx")
