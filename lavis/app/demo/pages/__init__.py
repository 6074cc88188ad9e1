"""The pages that come with the library, one a file. The registry imports them at its first look-up of a page."""
