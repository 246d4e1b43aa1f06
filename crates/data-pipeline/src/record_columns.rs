//! Fine-tuning records as Parquet: a list of `{role, content}` structs and plain text columns.

use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder, StructBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::error::{DataError, LineProblem, Result};
use crate::folder::{Folder, Format, OutDir, ShardWriter, open_parquet};
use crate::records::{Message, Record, Role};
use crate::rows::Source;
use crate::source::parquet::TextColumn;

const FORMAT: Format = Format { name: "firebrick-records", version: 1 };
const ROWS_PER_SHARD: usize = 65_536;

/// What a folder of records says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordMeta {
    /// `sft` or `preference`.
    pub kind: String,
    /// Where the records came from and under which terms.
    pub sources: Vec<Source>,
    /// How the records were derived from the sources, with every parameter, or empty.
    pub recipe: String,
}

/// Writes records as a new folder, atomically; returns the manifest's fingerprint.
///
/// # Errors
/// [`DataError::BadLine`] for a record that breaks a rule (the line is its place in `records`, from 1),
/// [`DataError::Empty`], [`DataError::Exists`].
pub fn write_records<R: Record>(dir: &Path, records: &[R], sources: &[Source], recipe: &str) -> Result<String> {
    let out = OutDir::create(dir, false)?;
    let fingerprint = write_records_into(out.path(), records, sources, recipe)?;
    out.commit()?;
    Ok(fingerprint)
}

/// Writes records into a folder that the caller commits; returns the manifest's fingerprint.
///
/// # Errors
/// As [`write_records`].
pub fn write_records_into<R: Record>(dir: &Path, records: &[R], sources: &[Source], recipe: &str) -> Result<String> {
    if records.is_empty() {
        return Err(DataError::Empty { path: dir.to_path_buf() });
    }
    for (i, record) in records.iter().enumerate() {
        record.check().map_err(|problem| DataError::line(dir, i + 1, problem))?;
    }
    let meta = RecordMeta { kind: R::KIND.to_owned(), sources: sources.to_vec(), recipe: recipe.to_owned() };
    let mut writer = ShardWriter::new(dir, FORMAT, schema::<R>(), &meta)?;
    for chunk in records.chunks(ROWS_PER_SHARD) {
        writer.write(columns(chunk))?;
    }
    writer.finish(&meta)
}

/// Checks a folder of records against its manifest.
pub(crate) fn verify(dir: &Path) -> Result<RecordMeta> {
    Folder::<RecordMeta>::open(dir, FORMAT).map(|folder| folder.meta)
}

fn message_fields() -> Fields {
    Fields::from(vec![Field::new("role", DataType::Utf8, false), Field::new("content", DataType::Utf8, false)])
}

fn message_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(message_fields()), false))
}

fn schema<R: Record>() -> SchemaRef {
    let mut fields = vec![Field::new(R::MESSAGE_COLUMN, DataType::List(message_item()), false)];
    fields.extend(R::TEXT_COLUMNS.iter().map(|name| Field::new(*name, DataType::Utf8, false)));
    Arc::new(Schema::new(fields))
}

fn columns<R: Record>(records: &[R]) -> Vec<ArrayRef> {
    let parts: Vec<_> = records.iter().map(Record::to_parts).collect();
    let message = StructBuilder::from_fields(message_fields(), 0);
    let mut lists = ListBuilder::new(message).with_field(message_item());
    for (messages, _) in &parts {
        for message in *messages {
            let item = lists.values();
            for (i, text) in [message.role.as_str(), &message.content].into_iter().enumerate() {
                item.field_builder::<StringBuilder>(i).expect("both fields are strings").append_value(text);
            }
            item.append(true);
        }
        lists.append(true);
    }
    let mut columns: Vec<ArrayRef> = vec![Arc::new(lists.finish())];
    for i in 0..R::TEXT_COLUMNS.len() {
        columns.push(Arc::new(StringArray::from_iter_values(parts.iter().map(|(_, texts)| texts[i]))));
    }
    columns
}

/// Reads every record of a Parquet file; `push` gets the row number from 1.
pub(crate) fn read<R: Record>(path: &Path, push: &mut impl FnMut(usize, R) -> Result<()>) -> Result<()> {
    let mut row = 0;
    for batch in open_parquet(path)? {
        let batch = batch?;
        refuse_unknown_columns::<R>(path, &batch)?;
        let messages = MessageColumn::new(path, &batch, R::MESSAGE_COLUMN)?;
        let texts = R::TEXT_COLUMNS.iter().map(|name| text_column(path, &batch, name)).collect::<Result<Vec<_>>>()?;
        for i in 0..batch.num_rows() {
            row += 1;
            let at_row = |problem| DataError::line(path, row, problem);
            let messages = messages.get(i).map_err(at_row)?;
            let mut values = Vec::with_capacity(texts.len());
            for (name, column) in R::TEXT_COLUMNS.iter().zip(&texts) {
                let value = column.as_ref().map(|c| c.get(i).ok_or_else(|| at_row(LineProblem::MissingField(name))));
                values.push(value.transpose()?.unwrap_or_default().to_owned());
            }
            push(row, R::from_parts(messages, values))?;
        }
    }
    Ok(())
}

fn refuse_unknown_columns<R: Record>(path: &Path, batch: &RecordBatch) -> Result<()> {
    let schema = batch.schema();
    let unknown =
        schema.fields().iter().find(|f| f.name() != R::MESSAGE_COLUMN && !R::TEXT_COLUMNS.contains(&f.name().as_str()));
    match unknown {
        None => Ok(()),
        Some(field) => {
            let expected = "only the columns of this kind of record";
            Err(DataError::WrongFormat { path: path.into(), expected, found: format!("column `{}`", field.name()) })
        }
    }
}

/// A text column; columns from `id` on may be missing.
fn text_column<'a>(path: &Path, batch: &'a RecordBatch, name: &str) -> Result<Option<TextColumn<'a>>> {
    let optional = ["id", "task", "source", "licence"].contains(&name);
    if optional && batch.column_by_name(name).is_none() {
        return Ok(None);
    }
    TextColumn::new(path, batch, name).map(Some)
}

/// The conversation of each row: a list of structs, or a string that is one user message.
enum MessageColumn<'a> {
    Lists(&'a arrow_array::ListArray),
    Text(TextColumn<'a>),
}

impl<'a> MessageColumn<'a> {
    fn new(path: &Path, batch: &'a RecordBatch, name: &str) -> Result<Self> {
        let Some(column) = batch.column_by_name(name) else {
            return Err(DataError::missing_column(path, batch, name));
        };
        if let Some(lists) = column.as_list_opt::<i32>() {
            let is_message = lists.values().as_struct_opt().is_some_and(|s| {
                s.num_columns() == 2 && ["role", "content"].iter().all(|n| s.column_by_name(n).is_some())
            });
            if is_message {
                return Ok(Self::Lists(lists));
            }
        } else if name == "prompt" {
            return TextColumn::new(path, batch, name).map(Self::Text);
        }
        let (expected, found) = ("a list of {role, content}", column.data_type().to_string());
        Err(DataError::ColumnType { path: path.into(), column: name.into(), expected, found })
    }

    fn get(&self, row: usize) -> Result<Vec<Message>, LineProblem> {
        let lists = match self {
            Self::Text(column) => {
                let text = column.get(row).ok_or(LineProblem::MissingField("prompt"))?;
                return Ok(vec![Message::new(Role::User, text)]);
            }
            Self::Lists(lists) => lists,
        };
        if lists.is_null(row) {
            return Err(LineProblem::MissingField("messages"));
        }
        let list = lists.value(row);
        let list = list.as_struct();
        let column = |name: &'static str| {
            list.column_by_name(name).and_then(TextColumn::from_array).ok_or(LineProblem::MissingField(name))
        };
        let (roles, contents) = (column("role")?, column("content")?);
        (0..list.len())
            .map(|i| {
                let role = roles.get(i).ok_or(LineProblem::MissingField("role"))?;
                let role = Role::from_name(role).ok_or_else(|| LineProblem::UnknownRole(role.to_owned()))?;
                Ok(Message::new(role, contents.get(i).ok_or(LineProblem::MissingField("content"))?))
            })
            .collect()
    }
}
