"""Per-layer statistics of weights, gradients, updates and activations, on a fixed probe batch in eval mode.

Layer l computes z_l = W_l h_{l-1} + b_l (W as units x fan_in) and its activation h_l = phi(z_l). Sums run in
float64. Nothing here draws a random number from a stream of training, updates a buffer or leaves a gradient
behind, so the weights of a run are bit for bit the same with and without statistics. The probe is the first 64 to
256 validation images: a 64th of the data set, and always 256 with stats=full (fanin.training.probe_size).

| key | meaning |
| --- | --- |
| weight/L/mean, std, absmax | over the entries of W (std: population) |
| weight/L/norm, spectral_norm | the Frobenius norm, and the largest singular value |
| weight/L/stable_rank | norm^2 / spectral_norm^2: from 1 to the rank, and 0 for W = 0 |
| weight/L/row_spread | max over units of norm(w - mean w) / norm(mean w): 0 where all units are the same |
| weight/L/sparsity | fraction of entries with abs(w) <= 1e-8 |
| grad/L/norm | 2-norm of the gradient of the probe's mean cross-entropy by W |
| update/L/ratio | norm(W_after - W_before) / norm(W_before) of the epoch's last step, projection included |
| activation/L/mean, std | of h over the probe's inputs and the units (std: population) |
| activation/L/dead | fraction of units that a rectifier holds at 0 for every input (of a conv: everywhere) |
| activation/L/saturated | fraction of outputs on a flat end of phi: the outer 5 % of its bounded side |
| signal/L/forward_gain | mean z_l^2 / mean z_{l-1}^2, with the input as z_0: mean field's q_l / q_{l-1} |
| signal/L/backward_gain | sum (dL/dz_l)^2 / sum (dL/dz_{l+1})^2: mean field's chi; not for the last layer |
| signal/L/predicted_forward_gain, predicted_backward_gain | the same by theory (prediction.py), at epoch 0 |

With stats=full also, at several times the cost (geometry.py, curvature.py; those from activation/L/p15 on with batch
norms as in training, by the probe's own means: batch_mode.py, drift.py, covariate_shift.py):

| key | meaning |
| --- | --- |
| weight/L/effective_rank | exp of the entropy of the singular values' shares |
| weight/L/init_distance, init_cosine | norm(W - W_0) / norm(W_0), and the cosine between W and W_0 |
| signal/L/correlation | mean cosine between two inputs' z_l: mean field's c_l |
| jacobian/mean_singular_value | of d logits / d input, over 8 inputs |
| curvature/sharpness | the largest eigenvalue of the loss's Hessian; gradient descent needs it below 2 / lr |
| curvature/gradient_quotient | mean relative change of the gradient by a step of size 1 (MetaInit) |
| curvature/noise_scale | tr(covariance of the gradient) / norm(gradient)^2, in images |
| activation/L/p15, p50, p85 | each unit's percentiles over the images of what its norm gives to phi, mean over units |
| activation/L/drift | mean change of the units' p15, p50, p85 since the last record / mean p85 - p15; not at epoch 0 |
| grad/L/covariate_shift | norm(G - G'): gradients by L's W and biases, G' after a step of optimizer/lr below L |
| grad/L/covariate_shift_cosine | between G and G': 1 where that step does not turn L's gradient |
| signal/L/batch_forward_gain, batch_backward_gain | as above; without batch norm the same as above |

L is the path of a Linear or Conv module; layers follow one another as the probe passes them. An activation
belongs to the layer whose output it receives, directly or through norms, dropout and pooling; where a skip
connection is added in between, it belongs to none. A ratio 0/0 is given as 0: no signal in, none out.
"""

from fanin.stats.kinds import BATCH_NORMS, LAYERS
from fanin.stats.layers import LayerStats

__all__ = ["BATCH_NORMS", "FULL", "LAYERS", "LEVELS", "STATISTICS", "LayerStats"]

STATISTICS = {
    "weight": ("mean", "std", "absmax", "norm", "spectral_norm", "stable_rank", "row_spread", "sparsity"),
    "grad": ("norm",),
    "update": ("ratio",),
    "activation": ("mean", "std", "dead", "saturated"),
    "signal": ("forward_gain", "backward_gain"),
}
FULL = {
    "weight": ("effective_rank", "init_distance", "init_cosine"),
    "grad": ("covariate_shift", "covariate_shift_cosine"),
    "activation": ("p15", "p50", "p85", "drift"),
    "signal": ("correlation", "batch_forward_gain", "batch_backward_gain"),
}
LEVELS = ("standard", "full", "off")
