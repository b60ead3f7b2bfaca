"""The program: settings, HTTP application, command line, metrics, lifespan. The one place where packages meet."""

__version__ = "0.1.0"
