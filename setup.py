"""Build the Cython extensions: every `.pyx` in a folder whose name starts with an underscore.

`TORPOR_EXTENSIONS=sfu/_dataplane` builds only what lies below that folder, for working on one of them;
`TORPOR_SANITIZE=1` builds with sanitizers, see `make sanitize`.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

sanitize = (
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if "TORPOR_SANITIZE" in os.environ else []
)
optimize = ["-O1", "-fno-omit-frame-pointer", *sanitize] if sanitize else ["-O3"]
only = os.environ.get("TORPOR_EXTENSIONS", "")
sources = sorted(
    str(path)
    for path in Path().glob("*/_*/*.pyx")
    if path.parts[0] != "benchmarks" and str(path).startswith(only)  # benchmarks build their own
)

extensions = [
    Extension(
        name=source.removesuffix(".pyx").replace("/", "."),
        sources=[source],
        extra_compile_args=[*optimize, "-g", "-fno-plt", "-Wno-unused-function", "-Wno-unreachable-code"],
        define_macros=[("CYTHON_TRACE_NOGIL", "0")],
        extra_link_args=sanitize,
        libraries=["pthread", "rt"],
    )
    for source in sources
]

setup(
    ext_modules=cythonize(
        extensions,
        # The one place for directives. Packet parsers work on raw pointers and check every bound themselves.
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
        },
        include_path=["."],
        # Cython misses changes of inline functions in cimported `.pxd` files, where much of the packet path lives.
        force=bool(only),
    )
)
