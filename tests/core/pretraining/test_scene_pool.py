"""Guards pretraining/scene_pool.py: the words that the base knows."""

from anomalydiffusion_core.bases.tiny import architecture
from anomalydiffusion_core.pretraining.scene_pool import caption_vocabulary
from anomalydiffusion_core.procedural.scenes import caption_words, draw_scene


def test_every_word_of_a_caption_is_in_the_vocabulary():
    tokenizer = architecture.load_tokenizer()
    known = set(caption_vocabulary(tokenizer, caption_words()).tolist())
    captions = {draw_scene(5, i, 32).caption for i in range(400)}
    assert {i for caption in captions for i in tokenizer(caption).input_ids} <= known
