"""Applications: the web demo and the data-set browser. Their packages are extras; nothing else imports them."""
