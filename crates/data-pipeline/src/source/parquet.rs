//! Parquet tables: one row per document, columns named by the configuration, other columns skipped.

use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, LargeStringArray, RecordBatch, StringArray, StringViewArray};

use super::{Parts, SourceConfig, TextRecord};
use crate::error::{DataError, LineProblem, Result};
use crate::folder::open_parquet;

/// A text column in any of Arrow's layouts.
#[derive(Clone)]
pub(crate) enum TextColumn<'a> {
    Small(&'a StringArray),
    Large(&'a LargeStringArray),
    View(&'a StringViewArray),
}

impl<'a> TextColumn<'a> {
    /// The column of this name.
    pub(crate) fn new(path: &Path, batch: &'a RecordBatch, name: &str) -> Result<Self> {
        let Some(column) = batch.column_by_name(name) else {
            return Err(DataError::missing_column(path, batch, name));
        };
        Self::from_array(column).ok_or_else(|| {
            let found = column.data_type().to_string();
            DataError::ColumnType { path: path.into(), column: name.into(), expected: "text", found }
        })
    }

    /// The column, if it is one of text.
    pub(crate) fn from_array(column: &'a ArrayRef) -> Option<Self> {
        let small = column.as_string_opt::<i32>().map(Self::Small);
        let large = || column.as_string_opt::<i64>().map(Self::Large);
        small.or_else(large).or_else(|| column.as_string_view_opt().map(Self::View))
    }

    /// The text of a row, `None` where it is null.
    pub(crate) fn get(&self, row: usize) -> Option<&'a str> {
        match self {
            Self::Small(c) => c.is_valid(row).then(|| c.value(row)),
            Self::Large(c) => c.is_valid(row).then(|| c.value(row)),
            Self::View(c) => c.is_valid(row).then(|| c.value(row)),
        }
    }
}

impl DataError {
    /// A column that a batch does not have.
    pub(crate) fn missing_column(path: &Path, batch: &RecordBatch, name: &str) -> Self {
        let found = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
        Self::MissingColumn { path: path.into(), column: name.into(), found }
    }
}

pub(super) fn read(path: &Path, source: &SourceConfig, push: &mut dyn FnMut(TextRecord) -> Result<()>) -> Result<()> {
    let mut row = 0;
    for batch in open_parquet(path)? {
        let batch = batch?;
        let text = TextColumn::new(path, &batch, &source.text_column)?;
        let optional = |name| batch.column_by_name(name).map(|_| TextColumn::new(path, &batch, name)).transpose();
        let (id, name, licence) = (optional(&source.id_column)?, optional("source")?, optional("licence")?);
        let cell = |column: &Option<TextColumn<'_>>, i| column.as_ref().and_then(|c| c.get(i)).map(str::to_owned);
        for i in 0..batch.num_rows() {
            row += 1;
            let text = text.get(i).filter(|t| !t.trim().is_empty());
            let text = text.ok_or_else(|| DataError::line(path, row, LineProblem::EmptyField("text")))?.to_owned();
            let parts = Parts { id: cell(&id, i), text, source: cell(&name, i), licence: cell(&licence, i) };
            push(source.complete(path, row, parts))?;
        }
    }
    Ok(())
}
