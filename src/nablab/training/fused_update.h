/* The optimizers of the compiled engines: each does what its namesake in torch.optim does. */
#include <float.h>

enum { SGD, RMSPROP, ADAM, ADAMW };

typedef struct {
    int64_t rule, nesterov;
    const double *learning_rate, *weight_decay, *epsilon; /* (K) each, and so the next two */
    const double *first_decay, *second_decay;             /* momentum or beta1; smoothing or beta2 */
} Optimizer;

typedef struct {
    const Optimizer *optimizer;
    int64_t replica, taken;             /* taken: the number of this step, from 1 */
    int64_t start, end;                 /* the parameters to update */
    double rate;                        /* multiplies the learning rate */
    real *weights, *first, *second;     /* of this replica: the weights and the optimizer's two memories */
    const real *gradient;
} Update;

/* A memory that fades into subnormal numbers would stay there and cost a hundred cycles at every step. */
INLINE real flush(real value) {
    const real smallest = IS_DOUBLE ? (real)DBL_MIN : (real)FLT_MIN;
    return value < smallest && value > -smallest ? 0 : value;
}

/* Scalars are computed in double and rounded once, as PyTorch does. */
static void update(const Update u) {
    const Optimizer *o = u.optimizer;
    const int64_t replica = u.replica, start = u.start, size = u.end;
    real *restrict w = u.weights, *restrict m = u.first, *restrict v = u.second;
    const real *restrict gradient = u.gradient;
    const double rate = o->learning_rate[replica] * u.rate, decay = o->weight_decay[replica];
    const double first = o->first_decay[replica], second = o->second_decay[replica];
    const double taken = (double)u.taken;
    const real lr = (real)rate, epsilon = (real)o->epsilon[replica];
    const real l2 = (real)(o->rule == ADAMW ? 0 : decay);
    const real b1 = (real)first, b2 = (real)second, c1 = (real)(1 - first), c2 = (real)(1 - second);
    if (o->rule == SGD) {
        const real now = o->nesterov ? 1 : 0, past = o->nesterov ? b1 : 1;
        for (int64_t p = start; p < size; p++) {
            const real g = gradient[p] + l2 * w[p];
            m[p] = flush(b1 * m[p] + g);
            w[p] -= lr * (now * g + past * m[p]);
        }
    } else if (o->rule == RMSPROP) {
        for (int64_t p = start; p < size; p++) {
            const real g = gradient[p] + l2 * w[p];
            v[p] = flush(b2 * v[p] + c2 * (g * g));
            m[p] = flush(b1 * m[p] + g / ((real)sqrt(v[p]) + epsilon));
            w[p] -= lr * m[p];
        }
    } else {
        const real move = (real)(rate / (1 - pow(first, taken)));
        const real unbias = (real)(1 / sqrt(1 - pow(second, taken)));
        const real keep = (real)(o->rule == ADAMW ? 1 - rate * decay : 1);
        for (int64_t p = start; p < size; p++) {
            const real g = gradient[p] + l2 * w[p];
            m[p] = flush(m[p] + c1 * (g - m[p]));
            v[p] = flush(b2 * v[p] + c2 * (g * g));
            w[p] = keep * w[p] - move * (m[p] / ((real)sqrt(v[p]) * unbias + epsilon));
        }
    }
}
