//! One `.safetensors` file, memory-mapped. Its header is checked in full before any tensor is read.

use super::stored::gguf;
use crate::dtype::DType;
use crate::error::{Error, Result};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo as RawInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Bytes of the header's length, at the start of a file.
const LENGTH_BYTES: usize = 8;
/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;
/// How many names an error lists.
const LISTED: usize = 8;
const DAMAGED: &str = "the file is damaged or its download was cut off: fetch or write it again";

/// What the header says about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Where the elements lie, counted from the start of the file; always within it.
    pub bytes: Range<usize>,
}

/// A read-only `.safetensors` file. Clones share one mapping.
///
/// The file must not be shortened while it is open: a read beyond the new end causes a SIGBUS, which ends the
/// process unless it handles the signal. This library installs no signal handler, because an engine has its
/// own; the program `lmhead` does. [`LoadOptions::copy`](super::LoadOptions::copy) loads without the mapping.
/// (Replacing the file by a rename is fine.)
#[derive(Debug, Clone)]
pub struct SafetensorsFile {
    path: Arc<Path>,
    file: Arc<File>,
    /// Size and time of modification when the file was opened.
    stamp: Stamp,
    map: Arc<Mmap>,
    header: Arc<Header>,
}

/// Size and time of modification of a file: every write changes one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    /// `None` where the system does not say.
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let about = file.metadata()?;
        Ok(Stamp { bytes: about.len(), modified: about.modified().ok() })
    }
}

/// The parsed header of a file.
#[derive(Debug)]
pub(super) struct Header {
    pub tensors: BTreeMap<String, TensorInfo>,
    pub metadata: BTreeMap<String, String>,
    /// For GGUF files only, which this module opens for [`gguf`].
    pub gguf: Option<gguf::About>,
}

/// A two-dimensional float tensor of a file, in place.
#[derive(Debug, Clone, Copy)]
pub struct FloatMatrix<'a> {
    /// f32, f16 or bf16.
    pub dtype: DType,
    pub rows: usize,
    pub columns: usize,
    /// Row-major, little-endian, `rows * columns` elements; not necessarily aligned.
    pub bytes: &'a [u8],
}

impl SafetensorsFile {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// `File` where it is missing, is a folder, is empty, ends before its header or its last tensor does,
    /// goes on after it, or has a header that is not safetensors' JSON; `Tensor` where the header's entry of
    /// one tensor is at fault.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_as(path.as_ref(), read_header)
    }

    /// Maps the file; `read_header` must check that all tensors lie in it.
    pub(super) fn open_as(path: &Path, read_header: fn(&Path, &[u8]) -> Result<Header>) -> Result<Self> {
        let (file, stamp, map) = map_file(path)?;
        let header = read_header(path, &map)?;
        Ok(SafetensorsFile {
            path: path.into(),
            file: Arc::new(file),
            stamp,
            map: Arc::new(map),
            header: Arc::new(header),
        })
    }

    /// Checks that the file was not written to since it was opened, by its length and its time of
    /// modification. If it was, what has been read may be a mixture of old and new contents.
    ///
    /// # Errors
    /// `File` where it was written to, or the system cannot tell.
    pub fn check_unchanged(&self) -> Result<()> {
        let problem = match Stamp::of(&self.file) {
            Ok(now) if now == self.stamp => return Ok(()),
            Ok(now) if now.bytes != self.stamp.bytes => {
                format!("was written to while it was in use: wanted {} bytes, got {}", self.stamp.bytes, now.bytes)
            }
            Ok(_) => "was written to while it was in use: wanted the time of modification that it had, got a later \
                      one"
            .into(),
            Err(e) => format!("was opened and can no longer be examined: {e}"),
        };
        Err(Error::file(
            &self.path,
            problem,
            "let its writer finish, or rename a new file into its place; then try again",
        ))
    }

    /// The path that was given to [`SafetensorsFile::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header's `__metadata__`: free text by key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Names of the tensors, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Whether the file holds a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// Type, shape and place of a tensor.
    ///
    /// # Errors
    /// `Tensor` where there is none of this name, listing what there is.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.header.tensors.get(name).ok_or_else(|| absent(&self.path, name, self.names()))
    }

    /// The elements of a tensor: row-major, little-endian, not necessarily aligned.
    ///
    /// # Errors
    /// As [`SafetensorsFile::tensor`].
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        Ok(&self.map[self.tensor(name)?.bytes.clone()])
    }

    /// A tensor `[rows, columns]` of f32, f16 or bf16, such as `hidden_states`.
    ///
    /// # Errors
    /// `Tensor` where it is absent, has another type or is not two-dimensional.
    pub fn float_matrix(&self, name: &str) -> Result<FloatMatrix<'_>> {
        let info = self.tensor(name)?;
        let wanted = "f32, f16 or bf16 [rows, columns]";
        let fix = "store it as a two-dimensional float tensor";
        match (float_dtype(info.dtype), info.shape.as_slice()) {
            (Some(dtype), &[rows, columns]) => {
                Ok(FloatMatrix { dtype, rows, columns, bytes: &self.map[info.bytes.clone()] })
            }
            _ => Err(Error::tensor(&self.path, name, wanted, info, fix)),
        }
    }

    /// A tensor `[n]` of i64 or i32, such as `logits_indices`.
    ///
    /// # Errors
    /// `Tensor` where it is absent, has another type or is not one-dimensional.
    pub fn indices(&self, name: &str) -> Result<Vec<i64>> {
        let info = self.tensor(name)?;
        if info.shape.len() != 1 {
            let fix = "store it as a one-dimensional integer tensor";
            return Err(Error::tensor(&self.path, name, "i64 or i32 [n]", info, fix));
        }
        integers(info.dtype, self.bytes(name)?).ok_or_else(|| {
            Error::tensor(&self.path, name, "i64 or i32 [n]", info, "store the indices as i64 or i32")
        })
    }

    /// The header of a GGUF file, beside its tensors.
    pub(super) fn gguf(&self) -> Option<&gguf::About> {
        self.header.gguf.as_ref()
    }

    pub(super) fn map(&self) -> &Arc<Mmap> {
        &self.map
    }

    /// Fills `out` with the bytes from `start` on. Reads the file, not the mapping: if the file has become
    /// shorter, this gives an error, not a signal.
    pub(super) fn read_at(&self, start: usize, out: &mut [u8]) -> Result<()> {
        #[cfg(unix)]
        let read = std::os::unix::fs::FileExt::read_exact_at(&*self.file, out, start as u64);
        #[cfg(not(unix))]
        let read: std::io::Result<()> = {
            out.copy_from_slice(&self.map[start..start + out.len()]);
            Ok(())
        };
        read.map_err(|e| {
            let wanted = format!("bytes {start} to {}", start + out.len());
            Error::file(&self.path, format!("cannot be read: wanted {wanted}, got an error: {e}"), DAMAGED)
        })
    }
}

impl std::fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.dtype, self.shape)
    }
}

/// The `DType` of a stored float type; `None` for types that are not multiplied as they are.
pub(super) fn float_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::Bf16),
        _ => None,
    }
}

/// i64 or i32 elements, widened; `None` for other types.
pub(super) fn integers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<i64>> {
    match dtype {
        Dtype::I64 => Some(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
        Dtype::I32 => {
            Some(bytes.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect())
        }
        _ => None,
    }
}

/// The error for a tensor that is absent; lists the tensors that are present.
pub(super) fn absent<'a>(path: &Path, name: &str, present: impl Iterator<Item = &'a str>) -> Error {
    Error::tensor(path, name, "a tensor of this name", listed(present), "check the name and the file")
}

/// Joins names, as "a, b and 7 more".
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.len() {
        0 => "a file without tensors".into(),
        n if n <= LISTED => names.join(", "),
        n => format!("{} and {} more", names[..LISTED].join(", "), n - LISTED),
    }
}

/// Opens and maps a regular file that is not empty.
fn map_file(path: &Path) -> Result<(File, Stamp, Mmap)> {
    let unreadable = |e: std::io::Error| {
        Error::file(
            path,
            format!("cannot be read: {e}"),
            "pass a .safetensors file that exists (a head: or a .gguf file)",
        )
    };
    // Asked before opening: opening a named pipe would wait for its writer.
    let about = std::fs::metadata(path).map_err(unreadable)?;
    if about.is_dir() {
        let fix = "pass the file, or open the folder as a checkpoint";
        return Err(Error::file(path, "wanted a .safetensors file, got a folder", fix));
    }
    if !about.is_file() {
        let fix = "files are memory-mapped: copy it to a disk";
        return Err(Error::file(path, "wanted a regular file, got a pipe or a device", fix));
    }
    let file = File::open(path).map_err(unreadable)?;
    let stamp = Stamp::of(&file).map_err(unreadable)?;
    if stamp.bytes == 0 {
        return Err(Error::file(path, "wanted a safetensors file, got an empty file", DAMAGED));
    }
    // SAFETY: the mapping is read-only and private to this type, which hands out no more than its length.
    // Rust cannot rule out that another process changes the file meanwhile; every value is checked after it
    // is read as plain bytes, so a change gives other numbers, never another type. Shortening is named in the
    // type's docs.
    let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
    Ok((file, stamp, map))
}

/// Recognises files that are not safetensors by their first bytes: returns what the file is and what to do
/// about it. `None` where it begins like safetensors or like nothing known.
fn foreign_format(file: &[u8]) -> Option<(&'static str, &'static str)> {
    // In a safetensors file the first eight bytes, a length, may look like another format's; but behind them
    // comes the header's brace.
    if file.get(LENGTH_BYTES) == Some(&b'{') {
        return None;
    }
    let convert = "convert it with save_file of Python's safetensors package";
    let fetch = "fetch the file itself: its server sent something else in its place";
    let starts: [(&[u8], &str, &str); 11] = [
        (
            b"version https://git-lfs.github.com/spec/",
            "a Git LFS pointer, which stands in place of the file",
            "fetch the file itself with `git lfs pull`, or with `hf download`",
        ),
        (
            b"# xet version",
            "a Xet pointer, which stands in place of the file",
            "fetch the file itself with `hf download`",
        ),
        (
            b"PK\x03\x04",
            "a zip archive, as PyTorch (.bin, .pt, .pth) and NumPy (.npz) write",
            "load it there, and save its tensors with save_file of Python's safetensors package",
        ),
        (
            b"\x93NUMPY",
            "a NumPy array (.npy)",
            "load it with numpy.load and save it with safetensors.numpy.save_file",
        ),
        (
            gguf::MAGIC,
            "a GGUF file",
            "GGUF files hold heads alone: pass it as --model or --head (Checkpoint::open)",
        ),
        (b"\x80\x02", "a pickle, as old versions of PyTorch write", convert),
        (b"\x80\x04", "a pickle", convert),
        (b"\x89HDF", "an HDF5 file", convert),
        (b"\x1f\x8b", "a gzip archive", "unpack it"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it"),
        (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    ];
    if let Some((_, what, fix)) = starts.iter().find(|(start, ..)| file.starts_with(start)) {
        return Some((what, fix));
    }
    // A server's answer may begin with a byte-order mark and empty lines.
    let text = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file).trim_ascii_start();
    let tag = |tag: &[u8]| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    match text.first() {
        Some(b'<') if [&b"<!doctype html"[..], b"<html", b"<head"].iter().any(|start| tag(start)) => {
            Some(("an HTML page", fetch))
        }
        Some(b'<') if tag(b"<?xml") => Some(("an XML document", fetch)),
        Some(b'{') => Some(("JSON text without a header's length before it", fetch)),
        _ => None,
    }
}

/// Reads and checks the header of a mapped file: all tensors lie within the file.
fn read_header(path: &Path, file: &[u8]) -> Result<Header> {
    let problem = |wanted: String, got: String| {
        Error::file(path, format!("not a whole safetensors file: wanted {wanted}, got {got}"), DAMAGED)
    };
    if let Some((what, fix)) = foreign_format(file) {
        return Err(Error::file(path, format!("wanted a safetensors file, got {what}"), fix));
    }
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(problem(
            format!("at least {LENGTH_BYTES} bytes of header length"),
            format!("{} bytes", file.len()),
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        // So is nearly every file of another format.
        let wanted = format!("a header of at most {MAX_HEADER} bytes");
        let problem = format!("not a whole safetensors file: wanted {wanted}, got {length} bytes");
        return Err(Error::file(
            path,
            problem,
            format!("it may be no safetensors file at all; if it is, {DAMAGED}"),
        ));
    }
    let length = length as usize; // at most MAX_HEADER
    let Some((header, data)) = rest.split_at_checked(length) else {
        let wanted = format!("a header of {length} bytes");
        return Err(problem(wanted, format!("a file that ends after {} of them", rest.len())));
    };
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| blame(path, header, &e))?;

    let start = LENGTH_BYTES + length;
    let names = metadata.offset_keys();
    for name in &names {
        let info = metadata.info(name).expect("offset_keys are the keys of info");
        let (from, to) = info.data_offsets;
        if to > data.len() {
            let wanted = format!("bytes {} to {} of the file", start + from, start.saturating_add(to));
            return Err(Error::tensor(
                path,
                name,
                wanted,
                format!("a file of {} bytes", file.len()),
                DAMAGED,
            ));
        }
    }
    if metadata.data_len() != data.len() {
        return Err(problem(
            format!("{} bytes, where the last tensor ends", start + metadata.data_len()),
            format!("{} bytes", file.len()),
        ));
    }
    let tensors = names
        .into_iter()
        .map(|name| {
            let info = metadata.info(&name).expect("offset_keys are the keys of info");
            let (from, to) = info.data_offsets;
            let info =
                TensorInfo { dtype: info.dtype, shape: info.shape.clone(), bytes: start + from..start + to };
            (name, info)
        })
        .collect();
    let told = metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
    Ok(Header { tensors, metadata: told.collect(), gguf: None })
}

/// The error for a header that cannot be read: names the tensor whose entry is at fault, if it is only one.
fn blame(path: &Path, header: &[u8], error: &serde_json::Error) -> Error {
    let entries: serde_json::Map<String, serde_json::Value> = match serde_json::from_slice(header) {
        Ok(entries) => entries,
        Err(e) => {
            let got = "wanted a header that is a JSON object, got";
            return Error::file(path, format!("not a safetensors file: {got} an error: {e}"), DAMAGED);
        }
    };
    if let Some(metadata) = entries.get("__metadata__") {
        let wanted = "an object whose values are all text";
        let fix = "save the file again with every value of its metadata as text";
        let Some(metadata) = metadata.as_object() else {
            let got = shortened(metadata);
            return Error::tensor(path, "__metadata__", wanted, got, fix);
        };
        if let Some((key, value)) = metadata.iter().find(|(_, value)| !value.is_string()) {
            let got = format!("{} under the key `{key}`", shortened(value));
            return Error::tensor(path, "__metadata__", wanted, got, fix);
        }
    }
    for (name, entry) in entries.iter().filter(|(name, _)| *name != "__metadata__") {
        let info: RawInfo = match serde_json::from_value(entry.clone()) {
            Ok(info) => info,
            Err(e) => {
                return Error::tensor(
                    path,
                    name,
                    "a dtype, a shape and data_offsets that are known",
                    e,
                    DAMAGED,
                );
            }
        };
        let (from, to) = info.data_offsets;
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = elements.and_then(|n| n.checked_mul(info.dtype.bitsize())).map(|bits| bits.div_ceil(8));
        if bytes.is_none() || to.checked_sub(from) != bytes {
            let bytes = bytes.map_or("more than fits".to_string(), |n| n.to_string());
            let wanted = format!("{bytes} bytes for {:?} {:?}", info.dtype, info.shape);
            return Error::tensor(path, name, wanted, format!("data_offsets {from} to {to}"), DAMAGED);
        }
    }
    let problem = format!("wanted a header whose tensors lie one after the other, got an error: {error}");
    Error::file(path, problem, DAMAGED)
}

/// A value as messages quote it: at most 40 characters.
fn shortened(value: &serde_json::Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// A tensor of a checkpoint and the file that holds it.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub file: SafetensorsFile,
    pub name: String,
    pub info: TensorInfo,
}

impl Tensor {
    /// An error that names this file and this tensor.
    pub fn error(&self, wanted: impl std::fmt::Display, got: impl std::fmt::Display, fix: &str) -> Error {
        Error::tensor(&self.file.path, &self.name, wanted, got, fix)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.file.map[self.info.bytes.clone()]
    }

    /// Elements `range` of a tensor of f32, f16 or bf16, widened to f32. An error names the first one that is
    /// not finite by its vocabulary row.
    pub fn finite_floats(&self, range: Range<usize>, what: &str) -> Result<Vec<f32>> {
        let fix = "quantise or export the checkpoint again";
        let Some(dtype) = float_dtype(self.info.dtype) else {
            return Err(self.error(format!("{what} in f32, f16 or bf16"), &self.info, fix));
        };
        let (start, size) = (range.start, dtype.size());
        let have = self.info.bytes.len() / size;
        if range.end > have || range.start > range.end {
            return Err(self.error(format!("{what} of rows {start} to {}", range.end), have, fix));
        }
        let mut bytes = vec![0; range.len() * size];
        self.file.read_at(self.info.bytes.start + start * size, &mut bytes)?;
        let mut values = vec![0.0; range.len()];
        dtype.widen(&bytes, &mut values);
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(i) => {
                let got = format!("{} at vocabulary row {}", values[i], start + i);
                Err(self.error(format!("finite {what}"), got, fix))
            }
        }
    }
}

impl SafetensorsFile {
    pub(super) fn handle(&self, name: &str) -> Result<Tensor> {
        Ok(Tensor { file: self.clone(), name: name.to_string(), info: self.tensor(name)?.clone() })
    }

    pub(super) fn path_buf(&self) -> PathBuf {
        self.path.to_path_buf()
    }
}
