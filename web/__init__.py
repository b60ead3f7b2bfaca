"""The pages a person opens, as the package `torpor.web`; `torpor/pages.py` serves them."""
