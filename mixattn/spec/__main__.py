"""Draws a wiring layer by layer, or tabulates every pattern; see `mixattn.spec.drawing`."""

from absl import flags

from mixattn.spec import drawing

if __name__ == "__main__":
    flags.adopt_module_key_flags(drawing)
    drawing.run()
