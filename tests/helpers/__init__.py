"""What tests share: models, graphs as text, random cases, and how passes are run alone."""
