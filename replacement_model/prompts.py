"""What may be a prompt's text."""


def check_text(prompt: str) -> None:
    """Tokenizers take text that UTF-8 can say; a terminal may pass on other bytes.

    Raises:
        ValueError: it is none; one line that says from where on.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as problem:
        raise ValueError(f"the prompt is no text from character {problem.start} on: not UTF-8") from None
