"""Planted faults: one line of the project changed each, small enough to train on without a word.

`old` must occur exactly once in `file` (so that a mutation that no longer applies is an error, not a pass). `test`: what of
the test suite should find it, as arguments of pytest; empty where only the verdict can.
"""

from __future__ import annotations

from dataclasses import dataclass

K = "runtime/kernels/"
A = "compilation/tvm_adapter/"
P = "compilation/passes/"
T = "runtime/codegen/templates/"


@dataclass(frozen=True)
class Mutation:
    """A fault, the case that meets it (`cases.BY_NAME`), and its momentum."""

    name: str
    file: str
    old: str
    new: str
    case: str
    test: str = ""
    momentum: float = 0.0


def ops(name: str) -> str:
    """The generated tests of an operation's kernel."""
    return f"tests/compilation/test_ops.py -k {name}"


MUTATIONS = [
    # -- residual connections and heads
    Mutation("MLP's residual dropped", K + "vt_mlp_block.c", "y[i] = a->residual ? x[i] + v : v;", "y[i] = v;",
             "bias+LN", ops("mlp_block")),
    Mutation("residual gradient of the MLP dropped", K + "vt_mlp_block.c",
             "const float *dy = a->residual ? a->dy + (ptrdiff_t)(n0 + t) * d : NULL;", "const float *dy = NULL;",
             "bias+LN", ops("mlp_block_grad")),
    Mutation("residual gradient of the attention dropped", K + "vt_attn_block.c",
             "const float *dy = a->residual && i < a->q_rows ? a->dy + k : NULL;", "const float *dy = NULL;",
             "bias+LN", ops("attn_block_grad")),
    Mutation("one head missed in the gradient", K + "vt_attn_block.c",
             "for (h = 0; h < a->heads; h++) {\n        if (w.bias)",
             "for (h = 1; h < a->heads; h++) {\n        if (w.bias)",
             "bias+LN", ops("attn_block_grad")),
    Mutation("head of the class token reads its neighbour's values", K + "vt_attn_row.c",
             "2 * width + h * d, 2 * width + (h + 1) * d, 0, width, xbar);\n        if (lora.r)",
             "2 * width + (h ? h - 1 : 0) * d, 2 * width + (h ? h : 1) * d, 0, width, xbar);\n        if (lora.r)",
             "head", ops("attn_block")),
    # -- the last row, the last term
    Mutation("bias gradients miss the last token row", K + "vt_gradient.c", "for (i0 = 0; i0 < n; i0 += 16) {",
             "for (i0 = 0; i0 < n - 1; i0 += 16) {", "bias+LN", ops("linear_grad")),
    Mutation("LayerNorm's gradients miss the last token row", K + "vt_gradient.c",
             "for (i = 0; i < n; i++) {\n            float *gi", "for (i = 0; i < n - 1; i++) {\n            float *gi",
             "full", ops("attn_block_grad")),
    Mutation("a long product loses its last term", K + "vt_panel.c",
             "for (k = 0; k < n; k++) {\n        const ptrdiff_t i =",
             "for (k = 0; k < (n > 40 ? n - 1 : n); k++) {\n        const ptrdiff_t i =", "head", ops("linear")),
    Mutation("gradient of the hidden layer loses a feature", K + "vt_mlp_block.c",
             "if (w->need_norm) vt_backward(s, dln, d, T, &a->w1, j0, j1, 0, d, dh, ld, 1);",
             "if (w->need_norm) vt_backward(s, dln, d, T, &a->w1, j0, j1 - 1, 0, d, dh, ld, 1);",
             "bias+LN", ops("mlp_block_grad")),
    # -- constants that are a little off
    Mutation("LayerNorm's eps 1 % too large", K + "vt_gradient.c", "mu) / (float)d + eps);",
             "mu) / (float)d + 1.01f * eps);", "bias+LN"),
    Mutation("scale of the scores 1 % too large", K + "vt_attn_block.c",
             "vt_head(a, s, a->out, T, h * a->d, 1.0f / VT_SQRT((float)a->d));",
             "vt_head(a, s, a->out, T, h * a->d, 1.01f / VT_SQRT((float)a->d));", "average pooling", ops("attn_block")),
    Mutation("scale of the queries' gradient 1 % too large", K + "vt_attn_block.c",
             "const float scale = 1.0f / VT_SQRT((float)d);\n    const int queries",
             "const float scale = 1.01f / VT_SQRT((float)d);\n    const int queries", "full", ops("attn_block_grad")),
    Mutation("gradients of biases 0.1 % too large", K + "vt_gradient.c",
             "if (scale)\n            for (l = 0; l < w; l++) a[l] = a[l] * scale[c0 + l];",
             "for (l = 0; l < w; l++) a[l] = a[l] * (scale ? scale[c0 + l] : 1.001f);", "bias+LN", ops("linear_grad")),
    Mutation("gradient of the loss 0.1 % too small at the label", K + "vt_loss.c", "(i == label ? 1.0f : 0.0f)",
             "(i == label ? 0.999f : 0.0f)", "head", ops("cross_entropy_grad")),
    Mutation("e^x off by up to 3e-5", K + "vt_math.h", "r = VT_FMA(r, f, 4.99999851e-1f);\n    r = VT_FMA(r, f, 1.0f);",
             "r = VT_FMA(r, f, 4.99999851e-1f);\n    r = VT_FMA(r, f, 1.0001f);", "head",
             "tests/compilation/test_kernels.py"),
    Mutation("slope of GELU off by 0.1 %", K + "vt_math.h", "0.398942280f * vt_expf(-0.5f * x * x)",
             "0.399342280f * vt_expf(-0.5f * x * x)", "full", ops("gelu_grad")),
    Mutation("the Gram residual's gradient 1 % too large", K + "vt_gram_part.c", "wt[i] = wt[i] * share;",
             "wt[i] = wt[i] * share * 1.01f;", "Gram", ops("gram_grad")),
    Mutation("a channel's normalisation 1 % off", K + "vt_patch_embed.c", "* channels + c], scale[c], shift[c]);",
             "* channels + c], scale[c] * (c ? 1.0f : 1.01f), shift[c]);", "head", ops("patch_embed")),
    # -- parts of formulas
    Mutation("LayerNorm's mean term missing in its gradient", K + "vt_gradient.c", "m2, g[c] - m1));",
             "m2, g[c] - 0.0f * m1));",
             "bias+LN", ops("layer_norm_grad")),
    Mutation("LayerNorm's variance term missing in its gradient", K + "vt_gradient.c",
             "rstd * (VT_FMA(-((x[c] - mean) * rstd), m2, g[c] - m1));",
             "rstd * (VT_FMA(-((x[c] - mean) * rstd), 0.0f * m2, g[c] - m1));",
             "bias+LN", ops("layer_norm_grad")),
    Mutation("softmax gradient without its row sum", K + "vt_attend.c", "p * (pt[j * T + t] - u->delta[t]);",
             "p * pt[j * T + t];", "bias+LN", ops("attn_block_grad")),
    Mutation("class token's softmax gradient without its row sum", K + "vt_attn_row.c",
             "ds = pi * (dp[i] - delta);", "ds = pi * dp[i];", "full", ops("attn_block_grad")),
    Mutation("prefix token without its position", K + "vt_patch_embed.c",
             "a->y[i] = a->pos ? a->prefix[i] + a->pos[i] : a->prefix[i];", "a->y[i] = a->prefix[i];",
             "bias+LN", ops("patch_embed")),
    Mutation("mean over one token too many", K + "vt_rows.c",
             "*AT(a->y, 0, c) *= share;", "*AT(a->y, 0, c) *= 1.0f / (1.0f / share + 1.0f);",
             "average pooling", ops("mean_rows")),
    Mutation("LoRA's scale missing in a gradient", K + "vt_attn_block.c", "vt_lora_scale(&w->qkv, w->dlow, n);", "",
             "LoRA", ops("attn_block_grad")),
    Mutation("LoRA of the projection missing in the heads' gradient", K + "vt_attn_block.c",
             "if (w->proj.r)\n        vt_lora_spread", "if (0)\n        vt_lora_spread", "LoRA", ops("attn_block_grad")),
    Mutation("gradient of the values' bias lost for the class token", K + "vt_attn_row.c",
             "vt_apply(s, &a->d_bqkv, 2 * width + h * d, go, d);", "", "bias+LN", ops("attn_block_grad")),
    # -- blocks, lists, buffers
    Mutation("stale key block in the forward pass", K + "vt_attn_block.c",
             "vt_keys_values(&src, s, h, k0, k1, K, V, NULL, d);",
             "if (k0 == 0) vt_keys_values(&src, s, h, k0, k1, K, V, NULL, d);", "bias+LN", ops("attn_block")),
    Mutation("stale key block in the gradient", K + "vt_attn_block.c",
             "vt_keys_values(&src, s, h, k0, k1, w.K, w.V, NULL, d);",
             "if (k0 == 0) vt_keys_values(&src, s, h, k0, k1, w.K, w.V, NULL, d);", "bias+LN", ops("attn_block_grad")),
    Mutation("column list read one entry too early", K + "vt_gradient.c", "(w->cols ? w->cols[j + l] : j + l) - c0;",
             "(w->cols ? w->cols[j + l - (l > 0)] : j + l) - c0;", "columns", ops("linear_grad")),
    Mutation("rows of a list taken as consecutive", K + "vt_gradient.c",
             "first[i] = g + ((w->rows ? w->rows[o] : o) - o0) * gos;",
             "first[i] = g + ((w->rows ? w->rows[r] + o - r : o) - o0) * gos;", "rows", ops("linear_grad")),
    Mutation("the Gram matrix A misses the last panel", K + "vt_gram_part.c",
             "for (n0 = 0; need_v && n0 < p->n; n0 += T) {", "for (n0 = 0; need_v && n0 < p->n - 1; n0 += T) {",
             "Gram", ops("gram_grad")),
    Mutation("sums read before they are written", K + "vt_attn_block.c",
             "            vt_fill(w.dK, 2 * w.B * d, 0.0f);\n", "", "bias+LN", ops("attn_block_grad")),
    Mutation("a gradient's sum not started from zero", K + "vt_mlp_block.c",
             "if (w->need_norm) vt_fill(dln, d * T, 0.0f);\n        vt_mlp_low_begin", "vt_mlp_low_begin",
             "bias+LN", ops("mlp_block_grad")),
    # -- updates
    Mutation("every update applied twice", K + "vt_gradient.c",
             "VT_EACH(param + i0, n, i, VT_FMA(lr, g[i], param[i0 + i]));",
             "VT_EACH(param + i0, n, i, VT_FMA(2.0f * lr, g[i], param[i0 + i]));", "bias+LN", ops("sgd")),
    Mutation("the velocity is not kept", K + "vt_gradient.c",
             "VT_EACH(velocity + i0, n, i, VT_FMA(momentum, velocity[i0 + i], g[i]));",
             "VT_EACH(velocity + i0, n, i, g[i]);", "bias+LN", "tests/compilation/test_ops.py -k sgd", 0.9),
    Mutation("momentum 0.1 % too small", T + "vit_train.c.j2", "#define VT_MOMENTUM {{ momentum | c_float }}",
             "#define VT_MOMENTUM ({{ momentum | c_float }} * 0.999f)", "bias+LN", "tests/runtime", 0.9),
    Mutation("updates one step late", T + "vit_train.c.j2", "    const vt_step step = {lr, VT_MOMENTUM, VT_MACS};\n",
             "    static float late;\n    const vt_step step = {late, VT_MOMENTUM, VT_MACS};\n    late = lr;\n",
             "bias+LN", "tests/runtime/test_simulator.py"),
    # -- import, gradients, passes, code generation
    Mutation("GELU imported as its tanh form", A + "recognise.py", 'call, args[0], {"tanh": 0})',
             'call, args[0], {"tanh": 1})', "head", "tests/compilation/test_passes.py tests/compilation/test_gradients.py"),
    Mutation("LayerNorm's eps imported 1 % too large", A + "recognise.py", 'eps = float(call.attrs.epsilon)',
             'eps = 1.01 * float(call.attrs.epsilon)', "full"),
    Mutation("of a value used twice one gradient is lost", A + "adjoint.py",
             'return self._emit(Call("add", {"a": a.name, "b": b.name}, {}, where=a.source), shape)', "return a.name",
             "bias+LN, kept", "tests/compilation/test_gradients.py"),
    Mutation("another token read in place of the class token", P + "narrow.py", 'TAKE, {"x": tensor}, {"row": row},',
             'TAKE, {"x": tensor}, {"row": row + 1},', "head", "tests/compilation/test_passes.py"),
    Mutation("a gradient recomputed from the cut below", P + "checkpoints.py",
             "segment, names = self.segments[k], cuts.get(k, {})",
             "segment, j = self.segments[k], k - 1 if k - 1 > self.frozen else k; "
             "names = {t: cuts.get(j, {}).get(s, s) for t, s in zip(segment.start, self.segments[j].start)}",
             "average pooling", "tests/compilation/test_passes.py"),
    Mutation("one trained column taken for its neighbour", P + "training.py",
             "trained, axis, tuple(index))",
             "trained, axis, tuple(sorted({*index[:-1], next(i for i in range(max(index)) if i not in index)})))",
             "columns", "tests/compilation/test_passes.py"),
    Mutation("a wrong entry in an index list of the C code", "runtime/codegen/layout.py", "self.tables[name] = list(values)",
             "self.tables[name] = [*values[:-1], values[-1] - 1]", "columns", "tests/runtime/test_codegen.py"),
]
