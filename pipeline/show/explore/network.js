"use strict";
// The network of the page: numbers from text, matrix products, and the CVAE at any KL weight.
// A batch of rows is one Float32Array, row after row.

/** Base64 to bytes. */
function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

/** Base64 to numbers: half precision numbers, little endian. */
function halvesOf(text) {
  const bytes = bytesOf(text);
  const view = new DataView(bytes.buffer);
  const numbers = new Float32Array(bytes.length / 2);
  for (let i = 0; i < numbers.length; i++) {
    const bits = view.getUint16(2 * i, true);
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    numbers[i] = bits >> 15 ? -size : size;
  }
  return numbers;
}

/** A linear layer: weights (outputs × inputs) in half precision, or 8-bit steps with a step size for each output; a bias. */
function layerOf(kept) {
  const bias = halvesOf(kept.bias);
  if (!kept.step_sizes) {
    const weights = halvesOf(kept.weights);
    return { inputs: weights.length / bias.length, outputs: bias.length, weights, bias };
  }
  const steps = new Int8Array(bytesOf(kept.weights).buffer), sizes = halvesOf(kept.step_sizes);
  const inputs = steps.length / bias.length;
  const weights = new Float32Array(steps.length);
  for (let i = 0; i < steps.length; i++) weights[i] = steps[i] * sizes[Math.floor(i / inputs)];
  return { inputs, outputs: bias.length, weights, bias };
}

/** Rows (count × inputs) through a linear layer: rows (count × outputs). */
function linear(layer, rows) {
  const { inputs, outputs, weights, bias } = layer;
  const count = rows.length / inputs;
  const result = new Float32Array(count * outputs);
  const fours = count - (count % 4);
  for (let o = 0; o < outputs; o++) {
    const start = o * inputs;
    for (let n = 0; n < fours; n += 4) { // four rows at once: each weight is read once for them
      const a = n * inputs, b = a + inputs, c = b + inputs, d = c + inputs;
      let first = 0, second = 0, third = 0, fourth = 0;
      for (let i = 0; i < inputs; i++) {
        const weight = weights[start + i];
        first += weight * rows[a + i];
        second += weight * rows[b + i];
        third += weight * rows[c + i];
        fourth += weight * rows[d + i];
      }
      result[n * outputs + o] = first + bias[o];
      result[(n + 1) * outputs + o] = second + bias[o];
      result[(n + 2) * outputs + o] = third + bias[o];
      result[(n + 3) * outputs + o] = fourth + bias[o];
    }
    for (let n = fours; n < count; n++) {
      let sum = bias[o];
      for (let i = 0; i < inputs; i++) sum += weights[start + i] * rows[n * inputs + i];
      result[n * outputs + o] = sum;
    }
  }
  return result;
}

/** A layer that is told the weight: scales and shifts of its outputs, at each of some weights. */
function toldLayerOf(kept) {
  return { ...layerOf(kept), scale: halvesOf(kept.scale), shift: halvesOf(kept.shift) };
}

/** Rows through a layer that is told the weight; place: between two of its weights, as `placeAmong` gives it. */
function toldLinear(layer, rows, place) {
  const scale = between(layer.scale, layer.outputs, place), shift = between(layer.shift, layer.outputs, place);
  const result = linear(layer, rows);
  for (let i = 0; i < result.length; i++) {
    const o = i % layer.outputs;
    result[i] = result[i] * scale[o] + shift[o];
  }
  return result;
}

/** Where a weight lies among rising weights, on a log scale: between `left` and `left + 1`, `share` of the way. */
function placeAmong(weights, weight) {
  let left = 0;
  while (left < weights.length - 2 && weights[left + 1] <= weight) left++;
  const share = Math.log(weight / weights[left]) / Math.log(weights[left + 1] / weights[left]);
  return { left, share: Math.min(Math.max(share, 0), 1) };
}

/** A row of a table (places × width) between two of its rows. */
function between(table, width, { left, share }) {
  const row = new Float32Array(width), a = left * width, b = a + width;
  for (let i = 0; i < width; i++) row[i] = table[a + i] + share * (table[b + i] - table[a + i]);
  return row;
}

function relu(rows) {
  for (let i = 0; i < rows.length; i++) if (rows[i] < 0) rows[i] = 0;
  return rows;
}

function sigmoid(rows) {
  for (let i = 0; i < rows.length; i++) rows[i] = 1 / (1 + Math.exp(-rows[i]));
  return rows;
}

/** Rows (count × width) with a one-hot label beside each: (count × (width + 10)). */
function withLabels(rows, labels) {
  const width = rows.length / labels.length, wide = width + 10;
  const joined = new Float32Array(labels.length * wide);
  labels.forEach((label, n) => {
    joined.set(rows.subarray(n * width, (n + 1) * width), n * wide);
    joined[n * wide + width + label] = 1;
  });
  return joined;
}

/** The CVAE. encode: pixels (count × 784) to q(z∣x,y). decode: latents to expected pixels. kl: nats of each row. */
function networkOf(kept) {
  const encoder = kept.encoder.map(toldLayerOf), decoder = kept.decoder.map(toldLayerOf);
  const mu = toldLayerOf(kept.mu), logVar = toldLayerOf(kept.log_var), last = toldLayerOf(kept.pixels);
  const through = (layers, rows, place) => layers.reduce((x, layer) => relu(toldLinear(layer, x, place)), rows);
  return {
    latents: mu.outputs,
    encode(pixels, labels, weight) {
      const place = placeAmong(kept.weights, weight);
      const features = through(encoder, withLabels(pixels, labels), place);
      return { mu: toldLinear(mu, features, place), log_var: toldLinear(logVar, features, place) };
    },
    decode(z, labels, weight) {
      const place = placeAmong(kept.weights, weight);
      return sigmoid(toldLinear(last, through(decoder, withLabels(z, labels), place), place));
    },
    kl(q) {
      const rates = new Float32Array(q.mu.length / mu.outputs);
      q.mu.forEach((m, i) => {
        rates[Math.floor(i / mu.outputs)] += (m * m + Math.exp(q.log_var[i]) - q.log_var[i] - 1) / 2;
      });
      return rates;
    },
  };
}

/** The mixtures fitted to each digit's latents, which change with the weight: component by component, linearly. */
function densitiesOf(kept, latents) {
  const shares = halvesOf(kept.shares), means = halvesOf(kept.means), roots = halvesOf(kept.roots);
  const styleMeans = halvesOf(kept.style_means), styleRoots = halvesOf(kept.style_roots);
  const triangle = (latents * (latents + 1)) / 2;
  const components = shares.length / kept.weights.length / 10;
  return {
    at(weight) {
      const place = placeAmong(kept.weights, weight);
      const now = {
        shares: between(shares, 10 * components, place),
        means: between(means, 10 * components * latents, place),
        roots: between(roots, 10 * components * triangle, place),
        styleMeans: between(styleMeans, 10 * latents, place),
        styleRoots: between(styleRoots, 10 * latents * latents, place),
      };
      return {
        /** A latent of a digit; choice: uniform, chooses the component; noise: standard normal. */
        sample(digit, choice, noise) {
          let component = digit * components, rest = choice;
          while (component < (digit + 1) * components - 1 && rest >= now.shares[component]) {
            rest -= now.shares[component++];
          }
          const z = new Float32Array(latents);
          let at = component * triangle;
          for (let i = 0; i < latents; i++) {
            z[i] = now.means[component * latents + i];
            for (let j = 0; j <= i; j++) z[i] += now.roots[at++] * noise[j]; // a lower triangle, row by row
          }
          return z;
        },
        /** The same style for any digit: the digit's mean, and the symmetric root of its covariance times noise. */
        style(digit, noise) {
          const z = new Float32Array(latents);
          for (let i = 0; i < latents; i++) {
            z[i] = now.styleMeans[digit * latents + i];
            const row = (digit * latents + i) * latents;
            for (let j = 0; j < latents; j++) z[i] += now.styleRoots[row + j] * noise[j];
          }
          return z;
        },
      };
    },
  };
}
