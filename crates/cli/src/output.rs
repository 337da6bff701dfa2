//! Writes output files: under a temporary name beside the target, renamed when complete, and removed if the
//! program ends before.

use crate::assembled::Assembled;
use crate::interrupt::Listed;
use lmhead::error::{Error, Result};
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
                if std::fs::metadata(&target).is_ok_and(|about| about.permissions().readonly()) {
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
    pub fn write(self, answer: &Assembled) -> Result<()> {
        self.write_with(|out| write_safetensors(out, answer.tensors()))
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
            Ok(about) if !about.is_file() => return Err(self.failed(NOT_REGULAR)),
            Ok(about) => about.permissions(),
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
