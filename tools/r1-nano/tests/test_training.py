# SPDX-License-Identifier: Apache-2.0
"""python3 -m unittest discover -s tools/r1-nano/tests

The model side, on small random weights. Skipped where torch is not installed.
"""
import itertools
import math
import os
import sys
import unittest
import unittest.mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
try:
    import torch
except ImportError as error:
    raise unittest.SkipTest("torch is not installed") from error

import data
import decode
import fp8
from model import Nano, Shape, best, causal, softmax_scale, yarn_frequencies

SEED = 3
SMALL = Shape(
    vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=2, q_lora_rank=16, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
)
R1 = Shape(rope_factor=40.0, original_max_position_embeddings=4096)


class Fp8Test(unittest.TestCase):
    def test_error_is_within_half_a_step_of_e4m3(self):
        torch.manual_seed(SEED)
        matrix = torch.randn(3, 200, 130)
        values, scale = fp8.quantize(matrix)
        self.assertEqual((values.shape, scale.shape), (matrix.shape, (3, 2, 2)))
        error = (fp8.dequantize(values, scale) - matrix).abs()
        step = scale.repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :200, :130]
        self.assertTrue((error <= matrix.abs() / 16 + step * 2**-9).all())

    def test_stored_values_are_stored_unchanged(self):
        torch.manual_seed(SEED)
        once = fp8.dequantize(*fp8.quantize(torch.randn(256, 256)))
        self.assertTrue(torch.equal(fp8.dequantize(*fp8.quantize(once)), once))

    def test_weights_have_their_own_values_again_afterwards(self):
        model = Nano(SMALL)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with fp8.stored_weights(model):
            inside = model.state_dict()["model.layers.0.self_attn.q_b_proj.weight"].clone()
        self.assertFalse(torch.equal(inside, before["model.layers.0.self_attn.q_b_proj.weight"]))
        for name, tensor in model.state_dict().items():
            self.assertTrue(torch.equal(tensor, before[name]), name)


class ModelTest(unittest.TestCase):
    def test_yarn_gives_the_frequencies_and_scale_of_r1(self):
        frequencies = yarn_frequencies(R1).tolist()
        for pair, expected in {0: 1.0, 10: 5.623413252e-2, 16: 5.5e-3, 22: 1.778279410e-4, 31: 3.333803580e-6}.items():
            self.assertTrue(math.isclose(frequencies[pair], expected, rel_tol=1e-6), pair)
        self.assertTrue(math.isclose(softmax_scale(R1), 0.1352337789, rel_tol=1e-8))

    def test_best_takes_the_lower_index_among_equals(self):
        self.assertEqual(best(torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0]), 2).tolist(), [False, True, True, False, False])

    @unittest.mock.patch.object(decode, "MAX_LENGTH", 64)
    def test_cached_answers_are_those_of_whole_passes(self):
        torch.manual_seed(SEED)
        model, prompts = Nano(SMALL), [[5, 6, 7], list(range(17)), [9] * 8]
        for prompt, answer in zip(prompts, decode.generate(model, prompts, -1, torch.float32), strict=True):
            ids = torch.tensor([prompt + answer])
            rope = model.rope(torch.arange(ids.shape[1]))
            states, _ = model.hidden(ids, rope, [causal(SMALL)] * SMALL.num_hidden_layers, torch.float32)
            self.assertEqual(model.lm_head(states).argmax(-1)[0, len(prompt) - 1 : -1].tolist(), answer)


class PackTest(unittest.TestCase):
    def test_rows_begin_with_documents_and_what_is_cut_off_comes_again(self):
        documents = [[i] * length for i, length in enumerate([3, 9, 4, 30, 2, 5, 6, 7, 8, 9])]
        rows = data.pack(((ids, [1] * len(ids)) for ids in itertools.cycle(documents)), 6, row_length=12)
        self.assertEqual(rows[0, 0].tolist(), [0] * 3 + [1] * 9)
        self.assertEqual(rows[0, 1].tolist(), [2] * 4 + [3] * 8)
        self.assertEqual(rows[0, 2].tolist(), [3] * 12)  # begins again, and loses only what no row can hold
        self.assertEqual(rows[0, 3].tolist(), [4] * 2 + [5] * 5 + [6] * 5)
        self.assertEqual(rows[0, 4].tolist(), [6] * 6 + [7] * 6)
        self.assertTrue((rows[1] == 1).all())


if __name__ == "__main__":
    unittest.main()
