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
R = "runtime/codegen/regions.py"


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


NESTS = "tests/compilation/test_nests.py tests/runtime/test_region_code.py"     # the code of regions against their nests

MUTATIONS = [
    # -- residual connections and heads
    Mutation("the first of two summands dropped", K + "vt_elementwise.c", "VT_KERNEL(add, y, a, b, a + b)",
             "VT_KERNEL(add, y, a, b, 0.0f * a + b)", "bias+LN, kept", ops("add")),
    Mutation("a residual written over where a region adds to it", R, 'or str(int(not call.adds[slot]))', 'or "0"',
             "bias+LN", NESTS),
    Mutation("one head missed in a region", R, "begin, end = map(Poly.of, loop.span)",
             'begin, end = map(Poly.of, (loop.span[0] + (v == "h"), loop.span[1]))', "bias+LN", NESTS),
    Mutation("one head missed in the gradient", K + "vt_attention.c",
             "for (i = 0; i < a->h; i++) {\n        const float *g",
             "for (i = a->h > 1; i < a->h; i++) {\n        const float *g",
             "bias+LN, kept", ops("attention_grad")),
    Mutation("every head with the weights of the first", R, 'yield name, str(begins[name.removesuffix("_at")])',
             'yield name, "0" if name == "o_at" and "h" in str(begins["o"]) else str(begins[name.removesuffix("_at")])',
             "head", NESTS),
    # -- the last row, the last term
    Mutation("bias gradients miss the last token row", K + "vt_gradient.c", "for (i0 = 0; i0 < n; i0 += 16) {",
             "for (i0 = 0; i0 < n - 1; i0 += 16) {", "bias+LN", ops("linear_grad")),
    Mutation("LayerNorm's gradients miss the last token row", K + "vt_layer_norm.c", "beta[c] += dy[c];",
             "beta[c] += i + 1 < a->n ? dy[c] : 0.0f;", "full", ops("layer_norm_grad")),
    Mutation("a long product loses its last term", K + "vt_panel.c",
             "for (k = 0; k < n; k++) {\n        const ptrdiff_t i =",
             "for (k = 0; k < (n > 40 ? n - 1 : n); k++) {\n        const ptrdiff_t i =", "head", ops("linear")),
    Mutation("gradient of a hidden layer loses a feature", K + "vt_linear.c",
             "vt_backward(s, a->d_x.at, a->d_x.row, a->n, &a->w, a->o_at, o1, a->c_at, c1,",
             "vt_backward(s, a->d_x.at, a->d_x.row, a->n, &a->w, a->o_at, o1 - (o1 == 4 * a->w.cols), a->c_at, c1,",
             "bias+LN", ops("linear_grad")),
    Mutation("a product of activations loses its last term", K + "vt_matmul.c",
             "a->y.add, a->n, a->o, a->k, a->a.at, a->a.row", "a->y.add, a->n, a->o, a->k - (a->k > 1), a->a.at, a->a.row",
             "Gram", ops("matmul")),
    Mutation("a loop leaves its last, shorter tile out", R, "{v} < {end}; {v} +=", "{v} + {loop.step} <= {end}; {v} +=",
             "average pooling", NESTS),
    # -- constants that are a little off
    Mutation("LayerNorm's eps 1 % too large", K + "vt_gradient.c", "mu) / (float)d + eps);",
             "mu) / (float)d + 1.01f * eps);", "bias+LN"),
    Mutation("scale of the scores 1 % too large", K + "vt_attention.c", "1.0f / VT_SQRT((float)d) : scale",
             "1.01f / VT_SQRT((float)d) : scale", "average pooling", ops("attention")),
    Mutation("scale of the queries' gradient 1 % too large", K + "vt_attend.c", "pt[j] = pt[j] * u->scale;",
             "pt[j] = pt[j] * u->scale * 1.01f;", "full", ops("attention_grad")),
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
    Mutation("the Gram residual 1 % too large", A + "recognise.py",
             'self._scaled(call, args[0], 1.0 / float(args[1].value))',
             'self._scaled(call, args[0], 1.01 / float(args[1].value))',
             "Gram", "tests/compilation/test_leaves.py -k gram"),
    Mutation("a channel's normalisation 1 % off", K + "vt_patch_embed.c", "* channels + c], scale[c], shift[c]);",
             "* channels + c], scale[c] * (c ? 1.0f : 1.01f), shift[c]);", "head", ops("patch_embed")),
    # -- parts of formulas
    Mutation("LayerNorm's mean term missing in its gradient", K + "vt_gradient.c", "m1 = vt_sum(g, d) / (float)d;",
             "m1 = 0.0f * vt_sum(g, d) / (float)d;", "bias+LN", ops("layer_norm_grad")),
    Mutation("LayerNorm's variance term missing in its gradient", K + "vt_gradient.c", "m2 = vt_tree16(a) / (float)d;",
             "m2 = 0.0f * vt_tree16(a) / (float)d;", "bias+LN", ops("layer_norm_grad")),
    Mutation("softmax gradient without its row sum", K + "vt_attend.c", "p * (pt[j * T + t] - u->delta[t]);",
             "p * pt[j * T + t];", "bias+LN", ops("attention_grad")),
    Mutation("class token's softmax gradient without its row sum", K + "vt_attention.c",
             "if (slopes) vt_load_state(delta,", "if (slopes && n > 1) vt_load_state(delta,", "full", ops("attention_grad")),
    Mutation("prefix token without its position", K + "vt_patch_embed.c",
             "a->y[i] = a->pos ? a->prefix[i] + a->pos[i] : a->prefix[i];", "a->y[i] = a->prefix[i];",
             "bias+LN", ops("patch_embed")),
    Mutation("mean over one token too many", K + "vt_rows.c",
             "*AT(a->y, 0, c) *= share;", "*AT(a->y, 0, c) *= 1.0f / (1.0f / share + 1.0f);",
             "average pooling", ops("mean_rows")),
    Mutation("LoRA's scale missing in a gradient", A + "adjoint.py", '{"value": float(value)}), shape)',
             '{"value": 1.0}), shape)', "LoRA", "tests/compilation/test_lora.py"),
    Mutation("gradient of a bias lost where there is one row", K + "vt_linear.c", "if (vt_wanted(&a->d_b)) {",
             "if (vt_wanted(&a->d_b) && (a->n > 1 || a->d_b.grad)) {", "bias+LN", ops("linear_grad")),
    # -- blocks, lists, buffers
    Mutation("sum of a softmax not rescaled when its maximum rises", K + "vt_attend.c",
             "for (t = 0; t < T; t++) l[t] = l[t] * corr[t];",
             "for (t = 0; t < T; t++) l[t] = corr[t] == 0.0f ? 0.0f : l[t];",
             "bias+LN", ops("attention")),
    Mutation("row sum of a softmax's gradient not rescaled when its maximum rises", K + "vt_attend.c",
             "delta[t] = delta[t] * corr[t];", "delta[t] = corr[t] == 0.0f ? 0.0f : delta[t];", "bias+LN",
             ops("attention_statistics")),
    Mutation("a softmax begun anew with each block of keys", R, '{"first": f"{scope.begin(v)} == 0",', '{"first": "1",',
             "full", NESTS),
    Mutation("a softmax finished at each block of keys", R, '"last": f"{end} == {scope.root(v).extent}"}', '"last": "1"}',
             "head", NESTS),
    Mutation("column list read one entry too early", K + "vt_gradient.c", "list = xl ? xl + (j - j0) : NULL;",
             "list = xl ? xl + (j - j0) - (j > j0) : NULL;", "columns", ops("linear_grad")),
    Mutation("rows of a list taken as consecutive", K + "vt_gradient.c",
             "first[i] = g + ((w->rows ? w->rows[o] : o) - o0) * gos;",
             "first[i] = g + ((w->rows ? w->rows[r] + o - r : o) - o0) * gos;", "rows", ops("linear_grad")),
    Mutation("sums read before they are written", K + "vt_attention.c", "for (t = 0; at && !y->add && t < n; t++)",
             "for (t = 0; at && !y->add && t < n - 1; t++)",
             "bias+LN", ops("attention_grad")),
    Mutation("a gradient's sum begun anew with each tile", R, 'return " || ".join(later) or', 'return "0" if later else',
             "bias+LN", NESTS),
    Mutation("a gradient's sum not started from zero", R, 'return " || ".join(later) or str(',
             'return "1" if later else str(', "full", NESTS),
    # -- updates
    Mutation("a tile's update at the beginning of the vector", R,
             "at = Poly() if whole else self._place(window, scope).at",
             "at = Poly() if whole or window.axes[-1].loop else self._place(window, scope).at", "bias+LN", NESTS),
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
