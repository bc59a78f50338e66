from slimtts.data.hard_sentences import ENGLISH, NANO
from slimtts.nano.grammar import TEMPLATES, unknown_words

KINDS = ["repetition", "numbers", "twisters", "long", "short"]


def test_the_bundled_teacher_knows_every_word_of_its_hard_sentences():
    assert {text: unknown_words(text) for texts in NANO.values() for text in texts if unknown_words(text)} == {}


def test_both_sets_have_every_kind_and_no_sentence_twice():
    for sentences in (NANO, ENGLISH):
        assert list(sentences) == KINDS
        texts = [text for kind in sentences.values() for text in kind]
        assert len(texts) == len(set(texts)) and all(len(kind) >= 6 for kind in sentences.values())


def test_long_ones_are_longer_and_short_ones_shorter_than_what_was_learned():
    learned = [len(template.split()) for template in TEMPLATES]
    assert min(len(text.split()) for text in NANO["long"]) > max(learned)
    assert max(len(text.split()) for text in NANO["short"]) < min(learned)
