#include "node/rope.h"

#include <math.h>

#define ROPE_PI 3.14159265358979323846

/* The pair index at which a wave makes n_rotations over the original context. */
static double yarn_corner(const struct hparams *hp, double base, double n_rotations) {
    return (double)hp->n_rot * log((double)hp->yarn_ctx / (n_rotations * 2 * ROPE_PI)) / (2 * log(base));
}

void rope_freqs_init(struct rope_freqs *out, const struct hparams *hp, bool compressed) {
    double base = compressed ? (double)hp->rope_base_compress : (double)hp->rope_base,
           n_rot = (double)hp->n_rot;
    double low = floor(yarn_corner(hp, base, (double)hp->yarn_beta_fast));
    double high = ceil(yarn_corner(hp, base, (double)hp->yarn_beta_slow));
    low = fmax(low, 0), high = fmin(high, n_rot - 1);
    double span = fmax(high - low, 0.001);
    out->n = hp->n_rot / 2;
    for (uint32_t i = 0; i < out->n; i++) {
        double f = pow(base, -2.0 * i / n_rot), ramp = fmin(fmax((i - low) / span, 0), 1);
        out->f[i] = (float)(compressed ? f * (1 - ramp) + f / (double)hp->yarn_factor * ramp : f);
    }
}

void rope_fill(float *cs, const struct rope_freqs *freqs, int32_t pos) {
    for (uint32_t i = 0; i < freqs->n; i++) {
        float angle = (float)pos * freqs->f[i];
        cs[2 * i] = (float)cos((double)angle);
        cs[2 * i + 1] = (float)sin((double)angle);
    }
}
