"""`lavis browse`: a data set in the web browser. Nothing but the standard library and what the core needs.

`words` says what a search means; `index` keeps records and their words in one SQLite file per split; `collection`
opens a data set and answers questions about it; `predictions` lays a run's results beside it; `media` makes thumbnails
and finds files; `counting` looks for missing files and measures pictures; `pages`, `listing`, `record` and
`numbers` write HTML; `server` answers.
"""
