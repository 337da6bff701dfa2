//! Writes output files: under a temporary name beside the target, renamed when complete, and removed if the
//! program ends before.

use crate::interrupt::Listed;
use bytemuck::{Pod, cast_slice};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::result::{Answer, Logprobs, Output};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// An output file, checked to be writable before anything is computed.
pub struct OutFile {
    /// As the user named it.
    named: PathBuf,
    /// The file itself: symbolic links are followed, and stay.
    target: PathBuf,
    option: &'static str,
}

/// A temporary file beside the target. It is removed when dropped, and when a signal ends the program.
pub struct Temporary {
    // Fields are dropped in this order: the file is registered for as long as it exists.
    file: NamedTempFile,
    listed: Listed,
}

impl Temporary {
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    pub fn as_file(&self) -> &File {
        self.file.as_file()
    }
}

/// The files that a command reads, over which nothing is written: those that are `named`, and all of the
/// folder `model`.
pub fn input_files<'a>(named: impl IntoIterator<Item = &'a Path>, model: Option<&Path>) -> Vec<PathBuf> {
    let folder = model.and_then(|folder| std::fs::read_dir(folder).ok());
    let files = folder.into_iter().flatten().flatten().map(|entry| entry.path());
    named.into_iter().map(Path::to_path_buf).chain(files).collect()
}

/// The problem with a target that exists and is something else.
const NOT_REGULAR: &str = "is not a regular file";

impl OutFile {
    /// Checks that `named`, the value of `option`, can be written: a new or an existing regular file, not one
    /// of `inputs`, in a folder that takes files.
    pub fn check(named: &Path, inputs: &[PathBuf], option: &'static str) -> Result<Self> {
        let refuse = |problem: String, fix: &str| Error::File {
            path: named.into(),
            problem,
            fix: format!("{fix} for {option}"),
        };
        if named.as_os_str().to_string_lossy().ends_with(['/', '\\']) || named.file_name().is_none() {
            return Err(refuse("is the name of a folder".into(), "name a file"));
        }
        let target = match std::fs::symlink_metadata(named) {
            Ok(_) => {
                let target = std::fs::canonicalize(named)
                    .map_err(|e| refuse(format!("cannot be followed: {}", e.kind()), "name a file"))?;
                if !target.is_file() {
                    return Err(refuse(NOT_REGULAR.into(), "name a file"));
                }
                if std::fs::metadata(&target).is_ok_and(|metadata| metadata.permissions().readonly()) {
                    return Err(refuse("is read-only".into(), "allow writing it, or name another"));
                }
                target
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => named.to_path_buf(),
            Err(e) => return Err(refuse(format!("cannot be written: {e}"), "name another file")),
        };
        let same = |input: &&PathBuf| std::fs::canonicalize(input).is_ok_and(|input| input == target);
        if let Some(input) = inputs.iter().find(same) {
            let problem = format!("is an input of this run ({})", input.display());
            return Err(refuse(problem, "name another file"));
        }
        let out = OutFile { named: named.into(), target, option };
        if !out.folder().is_dir() {
            let problem = format!("the folder {} does not exist", out.folder().display());
            return Err(refuse(problem, "create it, or name another"));
        }
        // Made and dropped at once: an interrupted run leaves nothing behind.
        out.temporary()?;
        Ok(out)
    }

    fn folder(&self) -> &Path {
        match self.target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    fn failed(&self, problem: impl std::fmt::Display) -> Error {
        Error::File {
            path: self.named.clone(),
            problem: format!("cannot be written: {problem}"),
            fix: format!("make room in that folder, or name another for {}", self.option),
        }
    }

    /// A new file beside the target.
    pub fn temporary(&self) -> Result<Temporary> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".lmhead-").suffix(".tmp");
        #[cfg(unix)]
        {
            // What File::create would give; the umask applies. The crate's default is for secrets.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let (file, listed) = Listed::make(|| builder.tempfile_in(self.folder()), NamedTempFile::path)
            .map_err(|e| self.failed(e.kind()))?;
        Ok(Temporary { file, listed })
    }

    /// Writes the answer as safetensors.
    pub fn write(self, answer: &Answer) -> Result<()> {
        self.write_with(|out| write_safetensors(out, tensors(answer)))
    }

    /// Writes `bytes`.
    pub fn write_bytes(self, bytes: &[u8]) -> Result<()> {
        self.write_with(|out| out.write_all(bytes))
    }

    /// Writes beside the target and moves the file to its place.
    fn write_with(self, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<()> {
        let temporary = self.temporary()?;
        let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
        let written = write(&mut out).and_then(|()| out.flush());
        // Discard the bytes still buffered after an error: dropping the writer would write them again.
        drop(out.into_parts());
        written.map_err(|e| self.failed(e))?;
        self.keep(temporary)
    }

    /// [`OutFile::keep`] after the bytes are synced to the disk, so that a crash of the machine cannot leave
    /// an incomplete file under the target's name.
    pub fn keep_synced(self, temporary: Temporary) -> Result<()> {
        temporary.as_file().sync_all().map_err(|e| self.failed(e))?;
        self.keep(temporary)
    }

    /// Moves a file that is complete from beside the target to its place.
    pub fn keep(self, temporary: Temporary) -> Result<()> {
        // An older answer's permissions stay; a new file gets those of any new file.
        let permissions = match std::fs::symlink_metadata(&self.target) {
            // When the run began, it was a regular file or did not exist.
            Ok(metadata) if !metadata.is_file() => return Err(self.failed(NOT_REGULAR)),
            Ok(metadata) => metadata.permissions(),
            Err(_) => temporary.as_file().metadata().map_err(|e| self.failed(e))?.permissions(),
        };
        let Temporary { file, listed } = temporary;
        std::fs::set_permissions(file.path(), permissions).map_err(|e| self.failed(e))?;
        file.persist(&self.target).map_err(|e| self.failed(e.error))?;
        drop(listed);
        Ok(())
    }
}

/// Name, type, shape, and little-endian elements.
pub type Tensor<'a> = (&'static str, Dtype, Vec<usize>, Cow<'a, [u8]>);

// Numbers are written as they lie in memory, and safetensors is little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// The tensors that --out writes of an answer.
pub fn tensors(answer: &Answer) -> Vec<Tensor<'_>> {
    fn bytes<T: Pod>(numbers: &[T]) -> Cow<'_, [u8]> {
        cast_slice(numbers).into()
    }
    fn logprob_tensors<'a>(logprobs: &'a Logprobs, rows: usize, names: [&'static str; 2]) -> Vec<Tensor<'a>> {
        let shape = if logprobs.targets == 1 { vec![rows] } else { vec![rows, logprobs.targets] };
        let mut tensors = vec![
            (names[0], Dtype::F32, shape.clone(), bytes(&logprobs.logprobs)),
            (names[1], Dtype::I64, shape, bytes(&logprobs.ranks)),
        ];
        // Without top_n there are no best ids: the empty tensors are left out.
        if logprobs.top_n > 0 {
            let shape = vec![rows, logprobs.top_n];
            tensors.push(("top_ids", Dtype::I64, shape.clone(), bytes(&logprobs.top_ids)));
            tensors.push(("top_logprobs", Dtype::F32, shape, bytes(&logprobs.top_logprobs)));
        }
        tensors
    }
    let rows = answer.rows();
    let status: Vec<u8> = answer.row_status.iter().map(|status| *status as u8).collect();
    let mut tensors = vec![("row_status", Dtype::U8, vec![rows], status.into())];
    tensors.extend(match &answer.output {
        Output::Logits { dtype, vocab_size, bytes } => {
            let dtype = match dtype {
                DType::F16 => Dtype::F16,
                DType::Bf16 => Dtype::BF16,
                _ => Dtype::F32,
            };
            vec![("logits", dtype, vec![rows, *vocab_size], bytes.into())]
        }
        Output::Argmax { ids } => vec![("argmax", Dtype::I64, vec![rows], bytes(ids))],
        Output::Sample { ids, logprobs } => {
            let names = ["sampled_logprobs", "sampled_ranks"];
            let logprobs = logprobs.iter().flat_map(|logprobs| logprob_tensors(logprobs, rows, names));
            [("sampled", Dtype::I64, vec![rows], bytes(ids))].into_iter().chain(logprobs).collect()
        }
        Output::TopK { k, values, ids, logsumexp } => vec![
            ("topk_values", Dtype::F32, vec![rows, *k], bytes(values)),
            ("topk_ids", Dtype::I64, vec![rows, *k], bytes(ids)),
            ("logsumexp", Dtype::F32, vec![rows], bytes(logsumexp)),
        ],
        Output::Logprobs(logprobs) => logprob_tensors(logprobs, rows, ["logprobs", "target_ranks"]),
        _ => unreachable!("no other request is asked"),
    });
    tensors
}

/// Writes `tensors` as a safetensors file: the widest types first, then by name, as the format's own writers
/// order them.
pub fn write_safetensors(out: &mut impl Write, mut tensors: Vec<Tensor<'_>>) -> io::Result<()> {
    tensors.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let mut end = 0;
    let infos = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let start = end;
        end += bytes.len();
        let info = TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) };
        (name.to_string(), info)
    });
    let metadata = Metadata::new(None, infos.collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    // The tensors begin at a multiple of 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.iter().try_for_each(|(_, _, _, bytes)| out.write_all(bytes))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, symlink};
    use std::os::unix::net::UnixListener;

    /// The same bytes as the format's own writer.
    #[test]
    fn an_answer_is_written_as_the_safetensors_crate_writes_it() {
        use lmhead::result::{OwnedAnswer, Request, StepStats};
        use safetensors::tensor::TensorView;
        for request in [
            Request::logits(DType::F32),
            Request::logits(DType::Bf16),
            Request::argmax(),
            Request::sample(),
            Request::sample_with_logprobs(0),
            Request::sample_with_logprobs(2),
            Request::top_k(3),
            Request::logprobs(0),
            Request::Logprobs { targets: 4, top_n: 3, processed: true },
        ] {
            let mut answer = OwnedAnswer::new(&request, 5, 70).unwrap();
            for (number, column) in answer.buffers().into_host().into_iter().enumerate() {
                let numbered = column.iter_mut().enumerate();
                numbered
                    .for_each(|(at, byte)| *byte = if number == 0 { at % 4 } else { number + 7 * at } as u8);
            }
            let answer = answer.into_answer(StepStats::default());
            let tensors = tensors(&answer);
            let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
                (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
            });
            let want = safetensors::serialize(views, None).unwrap();
            let mut got = Vec::new();
            write_safetensors(&mut got, tensors.clone()).unwrap();
            assert!(got == want, "{request}");
        }
    }

    /// A target that is no regular file is refused at the start, or at the end if it appeared later; it stays
    /// untouched.
    #[test]
    fn only_a_regular_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let entries = || std::fs::read_dir(folder.path()).unwrap().count();
        let check = |name: &str| OutFile::check(&at(name), &[], "--out");
        let refused = |result: Result<()>| assert!(result.unwrap_err().to_string().contains(NOT_REGULAR));
        let _socket = UnixListener::bind(at("socket")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        symlink(at("socket"), at("to_socket")).unwrap();
        symlink(at("nowhere"), at("to_nothing")).unwrap();
        for name in ["socket", "folder", "to_socket"] {
            refused(check(name).map(|_| ()));
        }
        assert!(check("to_nothing").is_err());

        let before = entries();
        for name in ["late", "late_folder"] {
            let out = check(name).unwrap();
            let _late = match name {
                "late" => Some(UnixListener::bind(at(name)).unwrap()),
                _ => std::fs::create_dir(at(name)).map(|()| None).unwrap(),
            };
            refused(out.write_bytes(b"an answer"));
        }
        assert!(std::fs::symlink_metadata(at("late")).unwrap().file_type().is_socket());
        assert!(at("late_folder").is_dir());
        assert_eq!(entries(), before + 2, "no temporary file stays");

        std::fs::write(at("file"), "an older answer").unwrap();
        symlink(at("file"), at("to_file")).unwrap();
        check("to_file").unwrap().write_bytes(b"an answer").unwrap();
        assert_eq!(std::fs::read(at("file")).unwrap(), b"an answer");
        assert!(at("to_file").is_symlink());
    }
}
