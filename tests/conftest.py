"""What all tests share."""

from pathlib import Path

from hypothesis import settings

import app

# How long an example takes is the machine's, which may be busy: no law of ours.
settings.register_profile("weir", deadline=None)
settings.load_profile("weir")


def forget_old_kernels(code: Path = Path(app.__file__).parent / "core") -> None:
    """Remove what was compiled before a kernel changed.

    Numba looks at the file of a function, not at those of the functions that it calls: it would
    go on with the old ones, in arrays of the new shape.
    """
    kernels = [path for path in code.rglob("*.py") if "import numba" in path.read_text()]
    newest = max(path.stat().st_mtime for path in kernels)
    for compiled in code.rglob("*.nb[ic]"):
        if compiled.stat().st_mtime < newest:
            compiled.unlink(missing_ok=True)


forget_old_kernels()
