"""The pages, a file a part of the site; each has `ROUTES`."""
