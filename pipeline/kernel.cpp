// One step of training for every member of a population, each from its images to its weights on one core.
//
// It computes what objective.terms, objective.loss, their gradients and torch's fused Adam do, for the models and
// objectives that kernel.suits names; kernel.py hands it the tensors. A member's activations and each gradient stay
// in its core's cache: Adam takes a gradient up as soon as the product that makes it is done, and the next one is
// written over it. All matrices lie in rows.

#include <xmmintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using Size = int64_t;

enum Conditioning : Size { SUM, MEAN, PRODUCT, CONCAT };  // kernel.CONDITIONINGS

template <class T>
using Multiply = void(const char*, const char*, const int*, const int*, const int*, const T*, const T*, const int*,
                      const T*, const int*, const T*, T*, const int*);  // sgemm or dgemm of a BLAS

// What all members learn of one kind, a member's after another's.
template <class T>
struct Tensor {
    T *value, *mean, *square, *average;  // mean and square: Adam's moments; average: null without train.ema
};

template <class T>
struct Layer {
    Size in, out;
    Tensor<T> weight, bias;  // (M, out, in) and (M, out)
};

template <class T>
struct Step {
    Multiply<T>* multiply;
    Size members, rows, inputs, pixels, classes, latent, conditioning, encoders, decoders;
    const Layer<T>* layers;        // the encoder's, mu, log_var, the label's (unless CONCAT), the decoder's, pixels
    const T *x, *one_hot, *noise;  // (rows, inputs), of which the first are the pixels; (rows, classes); (rows, latent)
    const T *kl_weights, *rates;   // (M,)
    double beta1, beta2, epsilon, count, decay;  // of Adam, whose steps count from 1; of the average
    T* figures;                                  // (3, M): loss, reconstruction, kl
};

namespace {

constexpr Size GAP = 4;       // inputs: copying fewer is cheaper than beginning another run
constexpr Size LANES = 112;   // as likelihood.FACTORS, a seventh of the pixels: seven factors a lane
constexpr Size PER_LOG = 16;  // lanes, one logarithm for all: 112 factors of at least a half are a normal number yet
constexpr Size LINE = 64;     // bytes; a product may round otherwise where what it reads lies otherwise

// Numbers that begin at a line.
template <class T>
struct Space {
    std::vector<T> numbers;

    T* of(Size size) {
        if (Size(numbers.size()) < size + LINE) numbers.resize(size + LINE);
        const auto address = reinterpret_cast<std::uintptr_t>(numbers.data());
        return numbers.data() + (LINE - address % LINE) % LINE / sizeof(T);
    }
};

// e^x for x ≤ 0, by its series around the nearest power of two: in a loop, a compiler makes vectors of it.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;  // NaN stays
    const float power = std::floor(x * 1.44269504f + 0.5f);
    const float rest = (x - power * 0.693359375f) + power * 2.12194440e-4f;  // ln 2 in two parts, the first exact
    float sum = 1.0f / 5040;
    sum = sum * rest + 1.0f / 720;
    sum = sum * rest + 1.0f / 120;
    sum = sum * rest + 1.0f / 24;
    sum = sum * rest + 1.0f / 6;
    sum = sum * rest + 0.5f;
    sum = sum * rest + 1.0f;
    sum = sum * rest + 1.0f;
    const uint32_t bits = (127 + (power < 1 ? int32_t(power) : 0)) << 23;  // NaN has none, and stays
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

inline double exponential(double x) { return std::exp(x); }

// The inputs that any image of the batch has, in runs; all others are 0 in all of it, a third of MNIST's.
template <class T>
struct Seen {
    struct Run {
        Size start, size;
    };
    std::vector<Run> runs;
    Size size = 0;
    Space<T> space;
    T* x;  // (rows, size)

    explicit Seen(const Step<T>& s) {
        std::vector<char> any(s.inputs, 0);
        for (Size i = 0; i < s.rows; ++i)
            for (Size j = 0; j < s.inputs; ++j) any[j] |= s.x[i * s.inputs + j] != 0;
        for (Size j = 0; j < s.inputs; ++j) {
            if (!any[j]) continue;
            if (runs.empty() || j >= runs.back().start + runs.back().size + GAP) runs.push_back({j, 0});
            runs.back().size = j + 1 - runs.back().start;
        }
        for (const Run& run : runs) size += run.size;
        x = space.of(s.rows * size);
        for (Size i = 0; i < s.rows; ++i) gather(s.x + i * s.inputs, x + i * size);
    }

    void gather(const T* row, T* seen) const {
        for (const Run& run : runs) seen = std::copy_n(row + run.start, run.size, seen);
    }

    void scatter(const T* seen, T* row) const {
        for (const Run& run : runs) {
            std::copy_n(seen, run.size, row + run.start);
            seen += run.size;
        }
    }
};

template <class T>
class Member {
   public:
    Member(const Step<T>& step, const Seen<T>& inputs, T* numbers) : s(step), seen(inputs), start(numbers) {}

    // More numbers than `run` takes.
    static Size needs(const Step<T>& s) {
        Size largest = 0, all = 16 * (s.rows + 1) * (s.latent + s.classes) + 3 * LANES + 2 * s.inputs;
        const Size layers = s.encoders + 4 + s.decoders - (s.conditioning == CONCAT);
        for (Size i = 0; i < layers; ++i) {
            const Layer<T>& layer = s.layers[i];
            largest = std::max(largest, (layer.in + 1) * layer.out);
            all += s.rows * (layer.in + layer.out) + 8 * LINE;
        }
        return all + largest + 40 * LINE;
    }

    void run(Size member) {
        m = member;
        used = 0;
        pace = T(double(s.rates[m]) / (1 - std::pow(s.beta1, s.count)));
        scale = T(1 / std::sqrt(1 - std::pow(s.beta2, s.count)));
        const Size codes = s.rows * s.latent, mu_at = s.encoders, log_var_at = mu_at + 1, label_at = mu_at + 2;
        const Size decoder_at = label_at + (s.conditioning != CONCAT), pixels_at = decoder_at + s.decoders;

        std::vector<const T*> encoded{s.x};
        for (Size i = 0; i < s.encoders; ++i) encoded.push_back(hidden(i, encoded.back()));
        const T *mu = forward(mu_at, encoded.back()), *log_var = forward(log_var_at, encoded.back());
        T *z = take(codes), *deviation = take(codes);
        double kl = 0;
        for (Size i = 0; i < codes; ++i) {
            deviation[i] = std::exp(log_var[i] / 2);
            z[i] = mu[i] + deviation[i] * s.noise[i];
            kl += (mu[i] * mu[i] + deviation[i] * deviation[i] - log_var[i] - 1) / 2;
        }
        kl /= s.rows;

        const T* label = s.conditioning == CONCAT ? s.one_hot : hidden(label_at, s.one_hot);
        std::vector<const T*> decoded{join(z, label)};
        for (Size i = decoder_at; i < pixels_at; ++i) decoded.push_back(hidden(i, decoded.back()));
        T* grad = forward(pixels_at, decoded.back());
        const double reconstruction = cross_entropy(grad);
        s.figures[m] = T(reconstruction + double(s.kl_weights[m]) * kl);
        s.figures[s.members + m] = T(reconstruction);
        s.figures[2 * s.members + m] = T(kl);

        // What a layer reads has its gradient by the weights as they were; only then do the weights learn.
        for (Size i = pixels_at; i >= decoder_at; --i) {
            const T* read = decoded[i - decoder_at];
            T* before = backward(i, grad);
            learn(i, grad, read);
            if (i > decoder_at) mask(before, read, s.rows * s.layers[i].in);
            grad = before;
        }
        T *by_mu = take(codes), *by_log_var = take(codes);
        if (s.conditioning == CONCAT) {
            const Size width = s.latent + s.classes;
            for (Size i = 0; i < s.rows; ++i) std::copy_n(grad + i * width, s.latent, by_mu + i * s.latent);
        } else {
            T* by_label = take(codes);
            for (Size i = 0; i < codes; ++i) {
                const T whole = s.conditioning == MEAN ? grad[i] / 2 : grad[i];
                by_label[i] = s.conditioning == PRODUCT ? whole * z[i] : whole;
                by_mu[i] = s.conditioning == PRODUCT ? whole * label[i] : whole;
            }
            mask(by_label, label, codes);
            learn(label_at, by_label, s.one_hot);
        }
        const T pressure = s.kl_weights[m] / s.rows;
        for (Size i = 0; i < codes; ++i) {
            const T d = deviation[i];
            by_log_var[i] = (by_mu[i] * s.noise[i] * d + pressure * (d * d - 1)) / 2;
            by_mu[i] += pressure * mu[i];
        }
        if (s.encoders > 0) {
            grad = backward(mu_at, by_mu);
            backward(log_var_at, by_log_var, grad);
        }
        learn(mu_at, by_mu, encoded.back());
        learn(log_var_at, by_log_var, encoded.back());
        for (Size i = s.encoders - 1; i >= 0; --i) {
            mask(grad, encoded[i + 1], s.rows * s.layers[i].out);
            T* before = i > 0 ? backward(i, grad) : nullptr;
            learn(i, grad, encoded[i]);
            grad = before;
        }
    }

   private:
    const Step<T>& s;
    const Seen<T>& seen;
    T* const start;
    Size m = 0, used = 0;
    T pace = 0, scale = 0;  // Adam's learning rate and √square, corrected for the moments' beginning at 0

    T* take(Size size) {
        T* taken = start + used;
        used += (size + LINE - 1) / LINE * LINE;  // whole lines, whatever a number's size
        return taken;
    }

    // out (rows, columns) = left right + beta · out, either transposed where its letter is T. A BLAS reads columns: to it
    // each matrix is its transpose, and outᵀ = rightᵀ leftᵀ.
    void product(const char* letters, Size rows, Size columns, Size inner, const T* left, Size left_width,
                 const T* right, Size right_width, T beta, T* out) const {
        if (!columns) return;
        const int h = rows, w = columns, k = inner;
        const int left_pitch = std::max<Size>(left_width, 1), right_pitch = std::max<Size>(right_width, 1);
        const T one = 1;
        s.multiply(letters + 1, letters, &w, &h, &k, &one, right, &right_pitch, left, &left_pitch, &beta, out, &w);
    }

    T* forward(Size at, const T* x) {
        const Layer<T>& layer = s.layers[at];
        T* y = take(s.rows * layer.out);
        const T *weight = layer.weight.value + m * layer.out * layer.in, *bias = layer.bias.value + m * layer.out;
        for (Size i = 0; i < s.rows; ++i) std::copy_n(bias, layer.out, y + i * layer.out);
        if (x == s.x) {
            const Size mark = used, width = seen.size;
            T* part = take(layer.out * width);
            for (Size i = 0; i < layer.out; ++i) seen.gather(weight + i * layer.in, part + i * width);
            product("NT", s.rows, layer.out, width, seen.x, width, part, width, 1, y);
            used = mark;
        } else {
            product("NT", s.rows, layer.out, layer.in, x, layer.in, weight, layer.in, 1, y);
        }
        return y;
    }

    // Linear + ReLU.
    T* hidden(Size at, const T* x) {
        T* y = forward(at, x);
        const Size size = s.rows * s.layers[at].out;
#pragma omp simd
        for (Size i = 0; i < size; ++i) y[i] = y[i] < 0 ? 0 : y[i];  // NaN stays
        return y;
    }

    static void mask(T* grad, const T* relu, Size size) {
#pragma omp simd
        for (Size i = 0; i < size; ++i) grad[i] = relu[i] <= 0 ? 0 : grad[i];
    }

    // What the decoder reads: model.Condition.
    T* join(const T* z, const T* label) {
        if (s.conditioning == CONCAT) {
            const Size width = s.latent + s.classes;
            T* joined = take(s.rows * width);
            for (Size i = 0; i < s.rows; ++i) {
                std::copy_n(z + i * s.latent, s.latent, joined + i * width);
                std::copy_n(label + i * s.classes, s.classes, joined + i * width + s.latent);
            }
            return joined;
        }
        T* joined = take(s.rows * s.latent);
        for (Size i = 0; i < s.rows * s.latent; ++i) {
            const T sum = z[i] + label[i];
            joined[i] = s.conditioning == SUM ? sum : s.conditioning == MEAN ? sum / 2 : z[i] * label[i];
        }
        return joined;
    }

    // Mean over the batch in nats; logits become their gradient.
    double cross_entropy(T* logits) {
        const Size mark = used;
        T *likely = take(LANES), *linear = take(LANES);
        const T share = T(1) / s.rows;
        double total = 0;
        for (Size i = 0; i < s.rows; ++i) {
            std::fill_n(likely, LANES, T(1));
            std::fill_n(linear, LANES, T(0));
            for (Size part = 0; part < s.pixels; part += LANES) {
                T* logit = logits + i * s.pixels + part;
                const T* x = s.x + i * s.inputs + part;
#pragma omp simd
                for (Size j = 0; j < LANES; ++j) {
                    const T value = logit[j], less = exponential(-std::abs(value)), more = 1 / (1 + less);
                    likely[j] *= more;  // sigmoid(|η|)
                    linear[j] += (value < 0 ? 0 : value) - value * x[j];
                    logit[j] = ((value < 0 ? less * more : more) - x[j]) * share;
                }
            }
            for (Size j = 0; j < LANES; j += PER_LOG) {
                T together = 1;
                for (Size k = j; k < j + PER_LOG; ++k) {
                    together *= likely[k];
                    total += linear[k];
                }
                total -= std::log(together);
            }
        }
        used = mark;
        return total / s.rows;
    }

    // The gradient of what a layer read, added to `sum` where that is given.
    T* backward(Size at, const T* grad, T* sum = nullptr) {
        const Layer<T>& layer = s.layers[at];
        T* before = sum ? sum : take(s.rows * layer.in);
        const T* weight = layer.weight.value + m * layer.out * layer.in;
        product("NN", s.rows, layer.in, layer.out, grad, layer.out, weight, layer.in, sum ? 1 : 0, before);
        return before;
    }

    // A layer's weights and biases, by its gradient (rows, out) and what it read, (rows, in).
    void learn(Size at, const T* grad, const T* x) {
        const Layer<T>& layer = s.layers[at];
        const Size mark = used, first = m * layer.out * layer.in;
        if (x == s.x) {
            const Size width = seen.size;
            T *part = take(layer.out * width), *row = take(layer.in);
            product("TN", layer.out, width, s.rows, grad, layer.out, seen.x, width, 0, part);
            std::fill_n(row, layer.in, T(0));
            for (Size i = 0; i < layer.out; ++i) {
                seen.scatter(part + i * width, row);
                adam(layer.weight, first + i * layer.in, row, layer.in);
            }
        } else {
            T* by_weight = take(layer.out * layer.in);
            product("TN", layer.out, layer.in, s.rows, grad, layer.out, x, layer.in, 0, by_weight);
            adam(layer.weight, first, by_weight, layer.out * layer.in);
        }
        T* by_bias = take(layer.out);
        std::fill_n(by_bias, layer.out, T(0));
        for (Size i = 0; i < s.rows; ++i) {
#pragma omp simd
            for (Size j = 0; j < layer.out; ++j) by_bias[j] += grad[i * layer.out + j];
        }
        adam(layer.bias, m * layer.out, by_bias, layer.out);
        used = mark;
    }

    // Kingma & Ba 2015, algorithm 1, and train.average.
    void adam(const Tensor<T>& tensor, Size first, const T* grad, Size size) const {
        T *value = tensor.value + first, *mean = tensor.mean + first, *square = tensor.square + first;
        const T beta1 = s.beta1, beta2 = s.beta2, new1 = 1 - s.beta1, new2 = 1 - s.beta2;
        const T rate = pace, root = scale, epsilon = s.epsilon, share = 1 - s.decay;
#pragma omp simd
        for (Size i = 0; i < size; ++i) {
            mean[i] = beta1 * mean[i] + new1 * grad[i];
            square[i] = beta2 * square[i] + new2 * grad[i] * grad[i];
            value[i] -= rate * mean[i] / (std::sqrt(square[i]) * root + epsilon);
        }
        if (!tensor.average) return;
        T* average = tensor.average + first;
#pragma omp simd
        for (Size i = 0; i < size; ++i) average[i] += share * (value[i] - average[i]);
    }
};

template <class T>
void take_step(const Step<T>& s) {
    const Seen<T> seen(s);
    const Size size = Member<T>::needs(s);
    const unsigned denormals = _mm_getcsr();  // count as 0 or not, as the caller has it: device.pick_device
#pragma omp parallel
    {
        const unsigned before = _mm_getcsr();
        _mm_setcsr(denormals);
        thread_local Space<T> space;  // kept, so that the next step has it at once
        Member<T> member(s, seen, space.of(size));
#pragma omp for schedule(dynamic)
        for (Size m = 0; m < s.members; ++m) member.run(m);
        _mm_setcsr(before);
    }
}

}  // namespace

extern "C" void step_float(const Step<float>* step) { take_step(*step); }
extern "C" void step_double(const Step<double>* step) { take_step(*step); }
