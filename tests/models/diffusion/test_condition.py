"""What is left of a condition on the unconditional side of guidance."""

import torch

from models.diffusion.condition import Condition


def test_without_text_all_that_is_of_a_caption_becomes_that_of_an_empty_one() -> None:
    given = Condition(
        text=torch.ones(2, 3, dtype=torch.long, device="cpu"),
        features=torch.ones(2, 3, 4, device="cpu"),
        empty_features=torch.full((3, 4), 2.0, device="cpu"),
        features_mask=torch.ones(2, 3, dtype=torch.bool, device="cpu"),
        empty_features_mask=torch.tensor([True, True, False], device="cpu"),
        text_embedding=torch.ones(2, 5, device="cpu"),
        empty_text_embedding=torch.full((5,), 3.0, device="cpu"),
        image_embedding=torch.ones(2, 5, device="cpu"),
    )
    none = given.without_text
    assert none.text is not None
    assert not none.text.any()
    assert none.features is not None
    assert bool((none.features == 2).all())
    assert none.features_mask is not None
    assert none.features_mask.tolist() == 2 * [[True, True, False]]
    assert none.text_embedding is not None
    assert none.text_embedding.tolist() == 2 * [5 * [3.0]]
    assert none.image_embedding is given.image_embedding
    assert none.null_embedding is None


def test_text_embeddings_become_zeros_where_that_of_an_empty_caption_is_not_known() -> None:
    none = Condition(text_embedding=torch.ones(2, 5, device="cpu")).without_text
    assert none.text_embedding is not None
    assert not none.text_embedding.any()


def test_without_embedding_every_row_takes_the_learned_vector() -> None:
    given = Condition(image_embedding=torch.ones(2, 5, device="cpu"))
    null = given.without_embedding.null_embedding
    assert null is not None
    assert null.tolist() == [True, True]
    assert given.without_text.without_embedding is given.without_text.without_embedding
    plain = Condition()
    assert plain.without_embedding is plain
