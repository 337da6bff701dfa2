//! Accumulator -> logit: what every backend does, in this order, with a value after the matmul.
//!
//! dequantise -> bias -> `final_logit_softcapping` -> `logit_scale`; each f32 operation is rounded on its
//! own.

/// The scalar settings of the epilogue, the same for the whole head. The bias belongs to the shard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Epilogue {
    /// `final_logit_softcapping`: `cap * tanh(logit / cap)`.
    pub softcap: Option<f32>,
    /// Multiplies the logit after the softcap. 1 leaves it as it is.
    pub scale: f32,
}

impl Default for Epilogue {
    fn default() -> Self {
        Epilogue { softcap: None, scale: 1.0 }
    }
}

impl Epilogue {
    /// Applies bias, softcap and scale to raw (dequantised) logits of consecutive vocabulary ids. Returns
    /// whether all of them were finite, both before the softcap, which would turn an infinite logit into a
    /// plausible one, and after the scale. `bias`, where given, has the length of `logits`.
    #[inline(always)]
    pub fn apply(&self, logits: &mut [f32], bias: Option<&[f32]>) -> bool {
        if let Some(bias) = bias {
            debug_assert_eq!(bias.len(), logits.len());
            for (l, b) in logits.iter_mut().zip(bias) {
                *l += b;
            }
        }
        let mut finite = all_finite(logits);
        if let Some(cap) = self.softcap {
            for l in logits.iter_mut() {
                // libm's tanh, not the system's: the same bits on every machine.
                *l = libm::tanhf(*l / cap) * cap;
            }
        }
        if self.scale != 1.0 {
            for l in logits.iter_mut() {
                *l *= self.scale;
            }
            finite &= all_finite(logits);
        }
        finite
    }
}

/// True when no value is NaN or infinite. Takes an integer maximum over the bits, which vectorises.
#[inline(always)]
pub fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff)) < f32::INFINITY.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_come_in_the_promised_order() {
        let mut l = [2.0f32];
        let e = Epilogue { softcap: Some(4.0), scale: 0.5 };
        assert!(e.apply(&mut l, Some(&[1.0])));
        assert_eq!(l[0], libm::tanhf(3.0 / 4.0) * 4.0 * 0.5);
    }

    #[test]
    fn a_softcap_does_not_hide_an_infinite_logit() {
        let e = Epilogue { softcap: Some(30.0), scale: 1.0 };
        let mut l = [1.0, f32::INFINITY];
        assert!(!e.apply(&mut l, None));
        assert_eq!(l[1], 30.0);
        let mut l = [f32::MAX];
        assert!(!Epilogue { softcap: None, scale: 2.0 }.apply(&mut l, None), "overflow by the scale");
        assert!(!Epilogue::default().apply(&mut [1.0, f32::NAN], None));
        assert!(Epilogue::default().apply(&mut [], None));
    }
}
