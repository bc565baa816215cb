// This file holds the choice of the next token from the scores of all.

/** The most probable token; the lower one among equals. */
export function greedy(logits) {
  let best = 0;
  for (let token = 1; token < logits.length; token++) {
    if (logits[token] > logits[best]) best = token;
  }
  return best;
}

/**
 * A function that chooses a token with its probability; the same seed gives the same tokens.
 *
 * @param topP Only the fewest most probable tokens of this total probability are chosen from; 1 is all.
 */
export function sampler(temperature, seed, topP) {
  if (temperature === 0) return greedy;
  const random = xorshift(seed);
  return (logits) => {
    const largest = logits[greedy(logits)];
    const weights = Float64Array.from(logits, (logit) => Math.exp((logit - largest) / temperature));
    if (topP < 1) keepNucleus(weights, topP);
    let left = random() * weights.reduce((sum, weight) => sum + weight, 0);
    for (let token = 0; token < weights.length; token++) {
      left -= weights[token];
      if (left < 0) return token;
    }
    return greedy(logits);
  };
}

/** Set the weights to 0 that are not among the fewest largest ones of this share of their sum. */
function keepNucleus(weights, share) {
  const order = Uint32Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a] || a - b);
  let left = share * weights.reduce((sum, weight) => sum + weight, 0);
  for (const token of order) {
    if (left <= 0) weights[token] = 0;
    else left -= weights[token];
  }
}

// Numbers from 0 to 1; G. Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003.
function xorshift(seed) {
  // Neighbouring seeds begin far apart, and no state is 0, which would stay 0.
  let state = Math.imul(seed + 1, 0x9e3779b9) | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}
